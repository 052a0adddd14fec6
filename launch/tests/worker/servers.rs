//! Servers of object stores on the loopback: moto for S3, Azurite for Azure. `cargo xtask test`
//! installs them and names their programs; without them the tests that need them are left out,
//! loudly, unless `CI=true`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::TryStreamExt;
use mks2_coordinator::journal::Place;
use mks2_dataset::store;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::path::Path;

use crate::lab::signal;
use crate::ports::free;

/// Bucket or container of the tests.
const BUCKET: &str = "mks2";
/// The account of the tests.
const ACCOUNT: &str = "mks2tests";
/// How long a server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts moto, which looks whether an object is there and stores it a moment later, with several threads:
/// here one at a time does both, as a store does that has conditions.
const MOTO: &str = "
import threading
from moto.s3.responses import S3Response
from moto.server import main

put_object, alone = S3Response.put_object, threading.Lock()

def put_alone(self):
    with alone:
        return put_object(self)

S3Response.put_object = put_alone
main()
";

/// Makes the container: a request that is signed with the account's key, as all of them.
const MAKE_CONTAINER: &str = "
const [account, key, port, container] = process.argv.slice(1);
const date = new Date().toUTCString(), path = `/${account}/${container}`;
const headers = { 'x-ms-date': date, 'x-ms-version': '2023-11-03' };
const words = `PUT\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\n\\nx-ms-date:${date}\\nx-ms-version:2023-11-03\\n`
    + `/${account}${path}\\nrestype:container`;
const hmac = require('crypto').createHmac('sha256', Buffer.from(key, 'base64'));
headers.authorization = `SharedKey ${account}:${hmac.update(words, 'utf8').digest('base64')}`;
const options = { host: '127.0.0.1', port, path: `${path}?restype=container`, method: 'PUT', headers };
require('http').request(options, (answer) => process.exit(answer.statusCode === 201 ? 0 : 1))
    .on('error', () => process.exit(2)).end();
";

/// Which kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    S3,
    Azure,
}

/// A server with an empty bucket. It ends with this value, or with this process.
#[derive(Debug)]
pub(crate) struct Server {
    kind: Kind,
    port: u16,
    secret: String,
    shell: Child,
    pid: u32,
}

impl Server {
    /// A server of a kind; none when its program is not there, which is no excuse in CI.
    pub(crate) fn start(kind: Kind) -> Option<Self> {
        let name = match kind {
            Kind::S3 => "MKS2_TEST_S3_SERVER",
            Kind::Azure => "MKS2_TEST_AZURE_SERVER",
        };
        let Some(program) = std::env::var_os(name) else {
            let must = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!must, "{name} names no server: use cargo xtask test");
            // Not by a macro, whose words are kept for failed tests.
            let mut stderr = std::io::stderr();
            let told = writeln!(
                stderr,
                "SKIPPED: no {kind:?} server; cargo xtask test has one"
            );
            told.expect("said");
            return None;
        };
        let address = free().expect("a free port").to_string();
        let port = address.rsplit_once(':').expect("a port").1;
        let secret = BASE64_STANDARD.encode(blake3::hash(port.as_bytes()).as_bytes());
        let mut words = Command::new("sh");
        // The shell holds the server while somebody holds its standard input.
        words
            .arg("-c")
            .arg("\"$@\" >/dev/null 2>&1 & echo $!; read _; kill -9 $!");
        words.arg("server");
        match kind {
            // By the interpreter of the environment that it is installed in.
            Kind::S3 => words
                .arg(std::path::Path::new(&program).with_file_name("python"))
                .args(["-c", MOTO, "-H", "127.0.0.1", "-p", port]),
            Kind::Azure => words
                .arg(program)
                .args(["--blobHost", "127.0.0.1", "--blobPort", port])
                .args(["--silent", "--inMemoryPersistence", "--skipApiVersionCheck"])
                .args(["--disableTelemetry"])
                .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{secret}")),
        };
        let mut shell = words
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let mut line = String::new();
        let stdout = shell.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let server = Self {
            kind,
            port: port.parse().expect("a port"),
            secret,
            shell,
            pid: line.trim().parse().expect("a process"),
        };
        server.make_bucket();
        Some(server)
    }

    fn make_bucket(&self) {
        let began = Instant::now();
        let port = self.port.to_string();
        loop {
            let mut command = match self.kind {
                Kind::S3 => {
                    let mut command = Command::new("bash");
                    let words = "exec 3<>/dev/tcp/127.0.0.1/$0 && printf \"PUT /$1 HTTP/1.0\\r\\n\
                         Content-Length: 0\\r\\n\\r\\n\" >&3 && grep -q ' 200 ' <&3";
                    command.args(["-c", words, &port, BUCKET]);
                    command
                }
                Kind::Azure => {
                    let mut command = Command::new("node");
                    command.args(["-e", MAKE_CONTAINER, ACCOUNT, &self.secret, &port, BUCKET]);
                    command
                }
            };
            let ended = command.stderr(Stdio::null()).status();
            if ended.expect("it runs").success() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{:?} does not start", self.kind);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The URL of a folder.
    pub(crate) fn url(&self, folder: &str) -> String {
        match self.kind {
            Kind::S3 => format!("s3://{BUCKET}/{folder}"),
            Kind::Azure => format!("az://{BUCKET}/{folder}"),
        }
    }

    /// What a program must know to use the store.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        match self.kind {
            Kind::S3 => vec![
                ("AWS_ACCESS_KEY_ID", ACCOUNT.into()),
                ("AWS_SECRET_ACCESS_KEY", self.secret.clone()),
                ("AWS_REGION", "us-east-1".into()),
                ("AWS_ENDPOINT_URL", endpoint),
            ],
            Kind::Azure => vec![
                ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.into()),
                ("AZURE_STORAGE_ACCOUNT_KEY", self.secret.clone()),
                ("AZURE_STORAGE_ENDPOINT", format!("{endpoint}/{ACCOUNT}")),
            ],
        }
    }

    /// What must not be seen anywhere.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// A folder of the store, for this process.
    pub(crate) fn place(&self, url: &str) -> Place {
        let (_, path) = url.split_at(self.url("").len());
        let store: Arc<dyn ObjectStore> = match self.kind {
            Kind::S3 => {
                let mut builder = AmazonS3Builder::new().with_allow_http(true);
                for (name, value) in self.variables() {
                    let key = name.to_lowercase().parse().expect("a key");
                    builder = builder.with_config(key, value);
                }
                Arc::new(builder.with_bucket_name(BUCKET).build().expect("a store"))
            }
            Kind::Azure => {
                let mut builder = MicrosoftAzureBuilder::new().with_allow_http(true);
                for (name, value) in self.variables() {
                    let key = name.to_lowercase().parse().expect("a key");
                    builder = builder.with_config(key, value);
                }
                Arc::new(
                    builder
                        .with_container_name(BUCKET)
                        .build()
                        .expect("a store"),
                )
            }
        };
        Place {
            store,
            root: Path::from(path),
        }
    }

    /// The contents of an object, if it is there.
    pub(crate) fn read(&self, url: &str) -> Option<Vec<u8>> {
        let place = self.place(url);
        let read = async { store::get_if_there(&*place.store, &place.root).await };
        let bytes = runtime().block_on(read).expect("the store answers");
        bytes.map(|bytes| bytes.to_vec())
    }

    /// The objects below a folder, in order, as URLs.
    pub(crate) fn list(&self, url: &str) -> Vec<String> {
        let place = self.place(url);
        let listed = place.store.list(Some(&place.root)).try_collect::<Vec<_>>();
        let listed = runtime().block_on(listed).expect("the store answers");
        let mut urls: Vec<_> = listed
            .iter()
            .map(|meta| self.url(meta.location.as_ref()))
            .collect();
        urls.sort();
        urls
    }

    /// Stops and wakes the server.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid, name);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Without its standard input the shell kills the server, stopped or not.
        drop(self.shell.stdin.take());
        let _ended = self.shell.wait();
    }
}

/// For what the tests themselves ask a store.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}
