//! A server of its own for each test, and a small client.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use ureq::http::{Request, Response};
use ureq::{Agent, AsSendBody, Body};

/// Long enough for a busy machine; a test that waits longer has found something.
const PATIENCE: Duration = Duration::from_secs(240);
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The built program.
pub fn zoetrope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zoetrope"));
    command.env_remove("ZOETROPE_API_KEY").env_remove("ZOETROPE_URL").env("ZOETROPE_LOG", "warn").stdin(Stdio::null());
    command
}

/// Runs the program to its end and expects success.
pub fn run(args: &[&str]) -> Output {
    let output = zoetrope().args(args).output().expect("the program starts");
    assert!(output.status.success(), "zoetrope {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Whether an outside program that some tests talk to is there. Without it those tests are skipped, unless
/// `ZOETROPE_REQUIRE_ALL` is set: then they fail.
#[allow(clippy::print_stderr, reason = "whoever runs the tests must see what was skipped")]
pub fn is_installed(program: &str, probe: &mut Command) -> bool {
    let found = probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(found || std::env::var_os("ZOETROPE_REQUIRE_ALL").is_none(), "{program} is required and not installed");
    if !found {
        eprintln!("skipped: {program} is not installed; scripts/test installs it");
    }
    found
}

/// What the ffprobe program says of a file's first video stream.
pub fn ffprobe(file: &Path) -> Option<Value> {
    if !is_installed("ffprobe", Command::new("ffprobe").arg("-version")) {
        return None;
    }
    let mut probe = Command::new("ffprobe");
    probe.args([
        "-v",
        "error",
        "-count_frames",
        "-select_streams",
        "v:0",
        "-show_streams",
        "-show_format",
        "-of",
        "json",
    ]);
    let output = probe.arg(file).output().expect("ffprobe runs");
    assert!(output.status.success(), "ffprobe: {}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).expect("ffprobe prints JSON"))
}

/// A running `zoetrope serve`, killed when dropped.
pub struct Server {
    child: Child,
    data_dir: PathBuf,
    /// The folder, when it is the server's own.
    _dir: Option<TempDir>,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// The operator's key, printed at the first start.
    pub key: String,
}

impl Server {
    /// Starts a server on a fresh data folder and a free port.
    pub fn start() -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let mut server = Self::start_in(dir.path());
        server._dir = Some(dir);
        server
    }

    /// Starts a server for the first time on a data folder that others have put something into.
    pub fn start_in(data_dir: &Path) -> Self {
        let (child, url, key) = launch(data_dir);
        Self { child, data_dir: data_dir.to_owned(), _dir: None, url, key: key.expect("the first start prints a key") }
    }

    /// Ends the process at once, as a crash would, and starts a new one on the same data.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server ends");
        let (child, url, key) = launch(&self.data_dir);
        assert_eq!(key, None, "the operator's key is printed once");
        (self.child, self.url) = (child, url);
    }

    /// Asks the process to stop and waits for it.
    pub fn stop(mut self) -> bool {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        self.child.wait().expect("the server ends").success()
    }

    /// A client with the operator's key.
    pub fn client(&self) -> Client {
        self.client_with(&self.key)
    }

    /// A client with another key.
    pub fn client_with(&self, key: &str) -> Client {
        Client {
            agent: Agent::config_builder().http_status_as_error(false).build().into(),
            url: self.url.clone(),
            key: key.to_owned(),
        }
    }

    /// A new tenant and a client with its key.
    pub fn tenant(&self, id: &str) -> Client {
        let operator = self.client();
        operator.post("/v1/tenants", &json!({ "id": id })).expect(201);
        let key = operator.post(&format!("/v1/tenants/{id}/keys"), &json!({ "label": "test" })).expect(201);
        self.client_with(key["key"].as_str().expect("a key"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn launch(data_dir: &Path) -> (Child, String, Option<String>) {
    let mut command = zoetrope();
    command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the server starts");
    let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
    let mut key = None;
    loop {
        let line = lines.next().expect("the server says where it listens").expect("readable output");
        let event: Value = serde_json::from_str(&line).expect("a JSON line");
        match event["event"].as_str() {
            Some("operator_key") => key = event["key"].as_str().map(str::to_owned),
            Some("listening") => {
                let url = format!("http://{}", event["address"].as_str().expect("an address"));
                return (child, url, key);
            }
            _ => panic!("unexpected line: {line}"),
        }
    }
}

/// Talks to a server with one key.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    url: String,
    key: String,
}

/// A status and a body.
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The body, once the status is the expected one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    /// The message of the error envelope.
    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or("").to_owned()
    }
}

impl Client {
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], ())
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], ())
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub fn put_component(&self, name: &str, component: &[u8]) -> Answer {
        self.send("PUT", &format!("/v1/functions/{name}"), &[("content-type", "application/wasm")], component)
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsSendBody) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !self.key.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.key));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response: Response<Body> = self.agent.run(request.body(body).expect("a request")).expect("an answer");
        let (parts, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        let mut reader = body.with_config().limit(BODY_BYTES_MAX).reader();
        reader.read_to_end(&mut bytes).expect("a body");
        Answer { status: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    /// Submits a video and waits for its end.
    pub fn make(&self, body: &Value) -> Value {
        let job = self.post("/v1/videos", body).expect(200);
        self.wait(job["id"].as_str().expect("an id"))
    }

    /// Waits until a video has completed or failed.
    pub fn wait(&self, id: &str) -> Value {
        let start = Instant::now();
        loop {
            let video = self.get(&format!("/v1/videos/{id}")).expect(200);
            if video["status"] == "completed" || video["status"] == "failed" {
                return video;
            }
            assert!(start.elapsed() < PATIENCE, "still {video}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// One number of the usage report over everything.
    pub fn used(&self, field: &str) -> u64 {
        let report = self.get("/v1/usage").expect(200);
        report["data"][0]["usage"][field].as_u64().unwrap_or(0)
    }

    /// All device milliseconds on the ledger.
    pub fn gpu_ms(&self) -> u64 {
        ["condition_gpu_ms", "diffuse_gpu_ms", "interpolate_gpu_ms"].iter().map(|field| self.used(field)).sum()
    }
}

/// The least work that still makes a real video.
pub fn small(prompt: &str) -> Value {
    json!({ "prompt": prompt, "steps": 1, "key_frames": 2, "seconds": "0.25", "fps": 8, "guidance": 1.0, "seed": 1 })
}

/// A file in a folder that lives as long as the test.
pub fn file(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}
