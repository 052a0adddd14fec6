//! A client of `mks2 serve`, over plain TCP, and the server that it talks with.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Ended, awaited, mks2, signal};

/// A server that is up.
pub(crate) struct Server {
    pub(crate) child: Option<Child>,
    address: String,
}

/// What came back.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    #[track_caller]
    pub(crate) fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// An error as OpenAI's API has it.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, words: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.json()["error"];
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(words), "'{words}' is not in: {message}");
        // A word, where the API has one.
        assert!(error["code"].is_string() || error["code"].is_null());
    }

    /// The data of a stream of events.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert!(self.head.contains("text/event-stream"), "{}", self.head);
        let data = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        let mut data: Vec<&str> = data.collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.iter()
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .collect()
    }
}

impl Server {
    pub(crate) fn of(model: impl AsRef<Path>, options: &[&str]) -> Self {
        let mut command = mks2(&["serve", "--listen", "127.0.0.1:0"]);
        command.arg(model.as_ref()).args(options);
        command.env("MKS2_GRACE", "120");
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("mks2 starts");
        let mut said = BufReader::new(child.stderr.take().expect("connected"));
        let mut address = None;
        let mut all = String::new();
        while address.is_none() {
            let mut line = String::new();
            let read = said.read_line(&mut line).expect("read");
            all += &line;
            assert!(read > 0, "it has ended: {all}");
            let found = line.split_once(" at http://").map(|(_, rest)| rest);
            address = found.and_then(|rest| Some(rest.split_once("/v1")?.0.to_owned()));
        }
        // Whoever stops reading may stop it from writing.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self {
            child: Some(child),
            address: address.expect("an address"),
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().expect("it is there").id()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("set");
        stream
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // A server that has refused already may close.
        let _ = stream.write_all(request.as_bytes());
        stream
    }

    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Response {
        let mut stream = self.send(method, path, body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).expect("UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a response");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let body = match head.contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_owned(),
        };
        Response {
            status: status.expect("a status"),
            head: head.to_owned(),
            body,
        }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.ask("POST", path, &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.ask("GET", path, "")
    }

    /// A number of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.and_then(|value| value.parse().ok()).expect("a number")
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn end(mut self, how: &str) -> Ended {
        let child = self.child.take().expect("it is there");
        signal(child.id(), how);
        awaited(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The body of chunks (RFC 9112, 7.1).
fn unchunked(mut body: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        all += &rest[..size];
        body = &rest[(size + 2).min(rest.len())..];
        if size == 0 {
            break;
        }
    }
    all
}
