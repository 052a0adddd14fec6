use proptest::prelude::*;
use tokio::io::DuplexStream;

use super::*;

const SEAT: Seat = Seat {
    generation: 3,
    world: 2,
    rank: 1,
};

fn secret(run: &str, token: &str) -> Secret {
    Secret::new(run, token)
}

/// Both sides with each other; what the dialer sent is recorded.
async fn meet(dialer: &Secret, acceptor: &Secret) -> (bool, Option<(Seat, Purpose)>) {
    let (mut near, mut far) = tokio::io::duplex(1024);
    let hello = dialer.hello(SEAT);
    let (called, answered) = tokio::join!(
        async {
            let called = call(&mut near, dialer, &hello, Purpose::Pulse).await;
            drop(near);
            called
        },
        async {
            let answered = answer(&mut far, acceptor).await;
            drop(far);
            answered
        },
    );
    let known = answered.ok().map(|(hello, purpose)| (hello.seat, purpose));
    (called.is_ok(), known)
}

#[tokio::test]
async fn only_those_of_the_same_run_and_token_come_through() {
    let ours = secret("run", "token");
    let known = Some((SEAT, Purpose::Pulse));
    assert_eq!(meet(&ours, &secret("run", "token")).await, (true, known));
    for other in [
        secret("run", "guess"),
        secret("other", "token"),
        secret("", ""),
    ] {
        assert_eq!(meet(&other, &ours).await, (false, None));
        assert_eq!(meet(&ours, &other).await, (false, None));
    }
}

/// Writes `words`, closes, and gives what the door makes of it and what it had to say.
async fn said(words: &[u8], secret: &Secret) -> (bool, Vec<u8>) {
    let (mut near, mut far) = tokio::io::duplex(4096);
    let answering = async {
        let answered = answer(&mut far, secret).await.is_ok();
        drop(far);
        answered
    };
    let speaking = async {
        // The door may have had enough before the end.
        let _closed = near.write_all(words).await;
        let _closed = near.shutdown().await;
        let mut heard = Vec::new();
        let _closed = near.read_to_end(&mut heard).await;
        heard
    };
    tokio::join!(answering, speaking)
}

/// Passes everything on between a true dialer and the door, and keeps the dialer's words.
async fn recorded(secret: &Secret) -> Vec<u8> {
    let (mut dialer, listener) = tokio::io::duplex(1024);
    let (speaker, mut door) = tokio::io::duplex(1024);
    let passing = tokio::spawn(pass(listener, speaker));
    let hello = secret.hello(SEAT);
    let (called, answered) = tokio::join!(
        call(&mut dialer, secret, &hello, Purpose::Link),
        answer(&mut door, secret)
    );
    called.unwrap();
    answered.unwrap();
    drop((dialer, door));
    passing.await.unwrap()
}

async fn pass(mut listener: DuplexStream, mut speaker: DuplexStream) -> Vec<u8> {
    let (mut forth, mut back) = ([0; HELLO_BYTES], [0; HELLO_BYTES]);
    let (mut proof, mut echo) = ([0; 32], [0; 32]);
    listener.read_exact(&mut forth).await.unwrap();
    speaker.write_all(&forth).await.unwrap();
    speaker.read_exact(&mut back).await.unwrap();
    listener.write_all(&back).await.unwrap();
    listener.read_exact(&mut proof).await.unwrap();
    speaker.write_all(&proof).await.unwrap();
    speaker.read_exact(&mut echo).await.unwrap();
    listener.write_all(&echo).await.unwrap();
    [forth.as_slice(), &proof].concat()
}

#[tokio::test]
async fn what_was_recorded_opens_no_door_again() {
    let ours = secret("run", "token");
    let words = recorded(&ours).await;
    let (is_in, heard) = said(&words, &ours).await;
    assert!(!is_in);
    // The door gives no proof to whoever has none.
    assert_eq!(heard.len(), HELLO_BYTES);
}

#[tokio::test]
async fn nobody_learns_more_than_a_hello_without_a_proof() {
    let ours = secret("run", "token");
    let mut other = secret("run", "token").hello(SEAT).encode(0).to_vec();
    other.extend([7; 32]);
    let (is_in, heard) = said(&other, &ours).await;
    assert!(!is_in && heard.len() == HELLO_BYTES);
    let hello = heard.first_chunk().and_then(Hello::decode);
    let (hello, _) = hello.expect("a hello");
    // Neither rank nor generation.
    assert_eq!(hello.seat, Seat::default());
    let http = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".repeat(8);
    let (is_in, heard) = said(&http, &ours).await;
    assert!(!is_in && heard.is_empty());
}

#[test]
fn nonces_never_repeat() {
    let mut known: Vec<_> = (0..10_000).map(|_| nonce()).collect();
    known.sort_unstable();
    known.dedup();
    assert_eq!(known.len(), 10_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn hellos_survive_the_wire(generation: u64, rank: u32, world: u32, word: u32) {
        let seat = Seat { generation, world, rank };
        let hello = secret("run", "token").hello(seat);
        prop_assert_eq!(Hello::decode(&hello.encode(word)), Some((hello, word)));
    }

    #[test]
    fn any_bytes_are_refused_and_answered_with_a_hello_at_most(
        mut words in prop::collection::vec(any::<u8>(), 0..400),
        is_greeting: bool,
    ) {
        let ours = secret("run", "token");
        if is_greeting {
            let hello = ours.hello(SEAT).encode(0);
            let count = words.len().min(HELLO_BYTES);
            words[..count].copy_from_slice(&hello[..count]);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (is_in, heard) = runtime.block_on(said(&words, &ours));
        prop_assert!(!is_in);
        prop_assert!(heard.len() <= HELLO_BYTES);
    }
}
