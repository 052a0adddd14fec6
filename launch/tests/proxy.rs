//! The TCP proxy with weather (`src/chaos/proxy.rs`): what each weather does to the two ends.

#[path = "../src/chaos/proxy.rs"]
mod proxy;

use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use proxy::{Proxy, Weather};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long something is awaited that must come.
const LIMIT: Duration = Duration::from_secs(10);
/// How long nothing must come.
const QUIET: Duration = Duration::from_millis(150);

/// Both ends of a connection through a proxy.
struct Bench {
    proxy: Proxy,
    server: TcpListener,
}

impl Bench {
    async fn new() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = server.local_addr().expect("bound");
        let proxy = Proxy::start(target).await.expect("a proxy");
        Self { proxy, server }
    }

    /// The caller's end and the target's.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let caller = self.call().await.expect("connected");
        let (target, _) = within(self.server.accept()).await.expect("accepted");
        (caller, target)
    }

    async fn call(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.proxy.address()).await
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("in time")
}

async fn hears(stream: &mut TcpStream, words: &[u8]) {
    let mut heard = vec![0; words.len()];
    within(stream.read_exact(&mut heard)).await.expect("heard");
    assert_eq!(heard, words);
}

async fn hears_nothing(stream: &mut TcpStream) {
    let mut byte = [0; 1];
    let heard = tokio::time::timeout(QUIET, stream.read(&mut byte)).await;
    assert!(heard.is_err(), "something came: {heard:?}");
}

async fn is_reset(stream: &mut TcpStream) {
    let mut byte = [0; 1];
    let heard = within(stream.read(&mut byte)).await;
    let error = heard.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn in_clear_weather_every_byte_passes_and_so_does_the_end() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    let many: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let told = many.clone();
    let caller = tokio::spawn(async move {
        caller.write_all(&told).await.expect("written");
        caller.shutdown().await.expect("said all");
        let mut answer = Vec::new();
        caller.read_to_end(&mut answer).await.expect("heard");
        answer
    });
    let mut heard = Vec::new();
    within(target.read_to_end(&mut heard)).await.expect("heard");
    assert!(heard == many, "{} bytes came", heard.len());
    target.write_all(b"thanks").await.expect("written");
    drop(target);
    assert_eq!(within(caller).await.expect("ended"), b"thanks");
    let traffic = bench.proxy.traffic();
    assert_eq!((traffic.forth_bytes, traffic.back_bytes), (3_000_000, 6));
    assert_eq!((traffic.connections, traffic.swallowed_bytes), (1, 0));
}

#[tokio::test]
async fn a_delay_holds_everything_up_and_nothing_overtakes() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    let delay = Duration::from_millis(120);
    bench.proxy.set_weather(Weather::delayed(delay));
    let began = Instant::now();
    caller.write_all(b"one").await.expect("written");
    tokio::time::sleep(delay / 3).await;
    caller.write_all(b"two").await.expect("written");
    hears(&mut target, b"one").await;
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    // Clear weather counts for what is on its way.
    bench.proxy.heal();
    hears(&mut target, b"two").await;
    caller.write_all(b"three").await.expect("written");
    hears(&mut target, b"three").await;
}

#[tokio::test]
async fn a_limit_makes_the_sender_wait() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    let limit = NonZeroU64::new(1_000_000).expect("not zero");
    bench.proxy.set_weather(Weather::limited(limit));
    let began = Instant::now();
    let sending = caller.write_all(&[7; 400_000]);
    let mut heard = vec![0; 400_000];
    let (sent, read) = within(async { tokio::join!(sending, target.read_exact(&mut heard)) }).await;
    sent.expect("written");
    read.expect("heard");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(370), "{took:?}");
}

#[tokio::test]
async fn a_reset_is_heard_at_both_ends_and_by_whoever_comes() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    bench.proxy.set_weather(Weather::resetting());
    is_reset(&mut caller).await;
    is_reset(&mut target).await;
    // The reset may come before the connection counts as made.
    if let Ok(mut next) = bench.call().await {
        is_reset(&mut next).await;
    }
    bench.proxy.heal();
    let (mut caller, mut target) = bench.connect().await;
    caller.write_all(b"again").await.expect("written");
    hears(&mut target, b"again").await;
}

#[tokio::test]
async fn who_is_refused_gets_no_connection_and_the_port_stays_the_same() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    for _ in 0..3 {
        bench.proxy.set_weather(Weather::refusing());
        is_reset(&mut caller).await;
        is_reset(&mut target).await;
        let began = Instant::now();
        loop {
            match bench.call().await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
                // The listener may have been there a moment ago.
                _ => assert!(began.elapsed() < LIMIT, "nobody is refused"),
            }
        }
        bench.proxy.heal();
        let began = Instant::now();
        while bench.call().await.is_err() {
            assert!(began.elapsed() < LIMIT, "the door stays shut");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _probe = within(bench.server.accept()).await.expect("accepted");
        (caller, target) = bench.connect().await;
    }
}

#[tokio::test]
async fn half_open_connections_take_bytes_and_give_none() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    bench.proxy.set_weather(Weather::half_open());
    caller.write_all(b"lost").await.expect("taken");
    target.write_all(b"lost too").await.expect("taken");
    hears_nothing(&mut caller).await;
    hears_nothing(&mut target).await;
    let mut next = bench.call().await.expect("it connects");
    next.write_all(b"anybody?").await.expect("taken");
    hears_nothing(&mut next).await;
    assert_eq!(bench.proxy.traffic().swallowed_bytes, 12);
    // A stream with a hole cannot go on.
    bench.proxy.heal();
    for stream in [&mut caller, &mut target, &mut next] {
        is_reset(stream).await;
    }
    let (mut caller, mut target) = bench.connect().await;
    caller.write_all(b"back").await.expect("written");
    hears(&mut target, b"back").await;
}

#[tokio::test]
async fn one_direction_can_be_half_open_and_the_other_goes_on() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    bench.proxy.set_weather(Weather::deaf());
    caller.write_all(b"lost").await.expect("taken");
    target.write_all(b"heard").await.expect("written");
    hears(&mut caller, b"heard").await;
    hears_nothing(&mut target).await;
    // Not even the end of it is heard.
    drop(caller);
    hears_nothing(&mut target).await;
    bench.proxy.heal();
    is_reset(&mut target).await;
    let (mut caller, mut target) = bench.connect().await;
    bench.proxy.set_weather(Weather::mute());
    target.write_all(b"lost").await.expect("taken");
    caller.write_all(b"heard").await.expect("written");
    hears(&mut target, b"heard").await;
    hears_nothing(&mut caller).await;
}

#[tokio::test]
async fn connections_that_lost_nothing_survive_a_half_open_spell() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    bench.proxy.set_weather(Weather::half_open());
    hears_nothing(&mut target).await;
    bench.proxy.heal();
    caller.write_all(b"whole").await.expect("written");
    hears(&mut target, b"whole").await;
}

#[tokio::test]
async fn what_is_held_arrives_later_and_senders_wait_for_place() {
    let bench = Bench::new().await;
    let (mut caller, mut target) = bench.connect().await;
    bench.proxy.set_weather(Weather::holding());
    // Far more than the queue and the system's buffers take.
    let size = 64_000_000;
    let sending = tokio::spawn(async move {
        let sent = caller.write_all(&vec![9; size]).await;
        (caller, sent)
    });
    hears_nothing(&mut target).await;
    assert!(!sending.is_finished(), "it was all taken in");
    bench.proxy.heal();
    let mut heard = vec![0; size];
    within(target.read_exact(&mut heard)).await.expect("heard");
    let (_caller, sent) = within(sending).await.expect("ended");
    sent.expect("written");
}

#[tokio::test]
async fn a_death_behind_the_proxy_is_passed_on() {
    let bench = Bench::new().await;
    let (mut caller, target) = bench.connect().await;
    target.set_zero_linger().expect("open");
    drop(target);
    is_reset(&mut caller).await;
    // Nobody listens at the target.
    let Bench { proxy, server } = bench;
    drop(server);
    let called = TcpStream::connect(proxy.address()).await;
    is_reset(&mut called.expect("the proxy is there")).await;
}

#[tokio::test]
async fn the_target_can_change_and_all_ends_with_the_proxy() {
    let bench = Bench::new().await;
    let (mut first, mut old) = bench.connect().await;
    let moved = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let there = moved.local_addr().expect("bound");
    bench.proxy.set_target(there);
    let mut second = bench.call().await.expect("connected");
    let (mut new, _) = within(moved.accept()).await.expect("accepted");
    second.write_all(b"there").await.expect("written");
    hears(&mut new, b"there").await;
    first.write_all(b"here").await.expect("written");
    hears(&mut old, b"here").await;
    let address = bench.proxy.address();
    drop(bench.proxy);
    for stream in [&mut first, &mut old, &mut second, &mut new] {
        is_reset(stream).await;
    }
    let began = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(began.elapsed() < LIMIT, "it still listens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
