//! A hub on this machine: the answers that a real one gives to whoever downloads a model.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The commit that `main` points to.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The one repository.
pub const ID: &str = "owner/Tiny-Diffusers";

/// How the hub misbehaves.
#[derive(Debug, Clone, Default)]
pub struct Mood {
    /// Answers to large files end after this many bytes.
    pub cut_bytes: Option<usize>,
    /// The file whose last byte is sent wrong.
    pub spoil: Option<String>,
    /// Who asks without this token gets 401.
    pub token: Option<String>,
}

/// A running hub. It lives as long as the test's process.
pub struct FakeHub {
    /// What `HF_ENDPOINT` is to be.
    pub url: String,
    state: Arc<State>,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    mood: Mutex<Mood>,
    /// Path and first byte of every request for content.
    asked: Mutex<Vec<(String, usize)>>,
}

impl FakeHub {
    /// Serves a folder as the repository.
    pub fn serve(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let mut files = BTreeMap::new();
        collect(folder, folder, &mut files);
        files.insert("transformer/diffusion_pytorch_model.bin".to_owned(), b"not needed".to_vec());
        let state = Arc::new(State { files, mood: Mutex::default(), asked: Mutex::default() });
        let hub = Self { url: url.clone(), state: Arc::clone(&state) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, url) = (Arc::clone(&state), url.clone());
                std::thread::spawn(move || while state.answer(&stream, &url).is_some() {});
            }
        });
        hub
    }

    /// Changes how the hub behaves from now on.
    pub fn be(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    /// The first bytes asked for, of each request for content of `path` since the last call.
    pub fn asked(&self, path: &str) -> Vec<usize> {
        let mut asked = self.state.asked.lock().unwrap();
        let (of_path, others) = asked.drain(..).partition(|(of, _)| of == path);
        *asked = others;
        of_path.into_iter().map(|(_, start)| start).collect()
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        if entry.path().is_dir() {
            collect(root, &entry.path(), files);
        } else {
            let path = entry.path().strip_prefix(root).expect("below the root").to_str().expect("readable").to_owned();
            files.insert(path, std::fs::read(entry.path()).expect("a file"));
        }
    }
}

impl State {
    /// Answers one request; none when the connection is over.
    fn answer(&self, stream: &TcpStream, url: &str) -> Option<()> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let request = lines.next()?;
        let headers: Vec<String> = lines.map(|line| line.to_ascii_lowercase()).collect();
        let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        let path = request.split(' ').nth(1)?.to_owned();
        let mood = self.mood.lock().unwrap().clone();
        if let Some(token) = &mood.token
            && header("authorization") != Some(&format!("bearer {token}"))
        {
            return send(stream, "401 Unauthorized", &[], b"");
        }
        if path == format!("/api/models/{ID}/revision/main?blobs=true") {
            return send(stream, "200 OK", &[], self.listing().as_bytes());
        }
        let start = header("range").and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        let probe = header("range") == Some("bytes=0-0");
        if let Some(file) = path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/")) {
            let content = self.files.get(file)?;
            let etag = format!("\"{}\"", hash(content));
            if is_large(file) {
                // Large files lie elsewhere: the hub says what they are and where.
                let place = format!("{url}/elsewhere/{file}");
                let headers = [("x-repo-commit", COMMIT), ("x-linked-etag", &etag), ("location", &place)];
                return send(stream, "302 Found", &headers, b"");
            }
            return self.content(stream, file, start, probe, &[("x-repo-commit", COMMIT), ("etag", &etag)], &mood);
        }
        match path.strip_prefix("/elsewhere/") {
            Some(file) => self.content(stream, file, start, probe, &[("etag", "\"elsewhere\"")], &mood),
            None => send(stream, "404 Not Found", &[], b""),
        }
    }

    fn content(
        &self,
        stream: &TcpStream,
        file: &str,
        start: Option<usize>,
        probe: bool,
        headers: &[(&str, &str)],
        mood: &Mood,
    ) -> Option<()> {
        let mut content = self.files.get(file)?.clone();
        if mood.spoil.as_deref() == Some(file) {
            *content.last_mut()? ^= 1;
        }
        let (start, total) = (start.unwrap_or(0), content.len());
        if !probe {
            self.asked.lock().unwrap().push((file.to_owned(), start));
        }
        if start >= total {
            return send(stream, "416 Range Not Satisfiable", &[], b"");
        }
        let end = if probe { 1 } else { total };
        let range = format!("bytes {start}-{}/{total}", end - 1);
        let headers = [headers, &[("content-range", &range)]].concat();
        let body = &content[start..end];
        match mood.cut_bytes {
            Some(bytes) if is_large(file) && !probe && bytes < body.len() => {
                write(stream, "206 Partial Content", &headers, body.len(), &body[..bytes])?;
                // The connection breaks.
                None
            }
            _ => send(stream, "206 Partial Content", &headers, body),
        }
    }

    fn listing(&self) -> String {
        let file = |(path, content): (&String, &Vec<u8>)| {
            let lfs = is_large(path).then(|| json!({ "sha256": hash(content), "size": content.len() }));
            json!({ "rfilename": path, "size": content.len(), "lfs": lfs })
        };
        json!({ "sha": COMMIT, "siblings": self.files.iter().map(file).collect::<Vec<_>>() }).to_string()
    }
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors")
}

fn hash(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

fn send(stream: &TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<()> {
    write(stream, status, headers, body.len(), body)
}

fn write(mut stream: &TcpStream, status: &str, headers: &[(&str, &str)], length: usize, body: &[u8]) -> Option<()> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).ok()
}
