//! The HTTP client of the commands that talk to a server.

use crate::args::Remote;
use crate::failure::Failure;
use serde_json::Value;
use std::time::Duration;
use ureq::http::{Request, Response};
use ureq::{Agent, AsSendBody, Body};

/// A whole video may be on its way.
const BODY_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server and a key.
pub struct Client {
    agent: Agent,
    url: String,
    key: String,
}

impl Client {
    /// The client for what the user gave.
    pub fn new(remote: &Remote) -> Result<Self, Failure> {
        let Some(key) = remote.key.clone() else {
            return Err(Failure::refused(
                "no API key: set ZOETROPE_API_KEY, or pass --key; `zoetrope serve` prints one at its first start",
            ));
        };
        let config = Agent::config_builder().http_status_as_error(false).timeout_connect(Some(CONNECT_TIMEOUT));
        Ok(Self { agent: config.build().into(), url: remote.url.trim_end_matches('/').to_owned(), key })
    }

    /// `GET path` as JSON.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send("GET", path, None, ()).and_then(read_json)
    }

    /// `GET path` as bytes.
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let mut response = self.send("GET", path, None, ())?;
        response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_vec().map_err(|e| self.broken(&e))
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.send("DELETE", path, None, ()).and_then(read_json)
    }

    /// `POST path` with a JSON body. Long work is not waited for: its progress is asked for afterwards.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send("POST", path, Some("application/json"), body.to_string().as_bytes()).and_then(read_json)
    }

    /// `PUT path` with raw bytes.
    pub fn put_bytes(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Value, Failure> {
        self.send("PUT", path, Some(content_type), body).and_then(read_json)
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        content_type: Option<&str>,
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.key))
            .header("prefer", "respond-async");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let request = request.body(body).map_err(|error| Failure::refused(format!("--url {}: {error}", self.url)))?;
        let response = self.agent.run(request).map_err(|error| self.broken(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response)) }
    }

    fn broken(&self, error: &ureq::Error) -> Failure {
        Failure::failed(format!("{}: {error}; is `zoetrope serve` running there?", self.url))
    }
}

fn read_json(mut response: Response<Body>) -> Result<Value, Failure> {
    response
        .body_mut()
        .read_json()
        .map_err(|error| Failure::failed(format!("the server's answer is not JSON: {error}")))
}

/// The server's own words, if it gave any.
fn refusal(mut response: Response<Body>) -> Failure {
    let status = response.status();
    let body: Value = response.body_mut().read_json().unwrap_or_default();
    let message =
        body["error"]["message"].as_str().map_or_else(|| format!("the server answered {status}"), str::to_owned);
    if status.is_client_error() { Failure::refused(message) } else { Failure::failed(message) }
}
