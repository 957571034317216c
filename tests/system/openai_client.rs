//! The unmodified OpenAI client for Python against a running server.

use crate::harness::{Server, is_installed};
use std::process::Command;

#[test]
fn the_openai_python_client_creates_polls_retrieves_lists_downloads_and_deletes() {
    let python = std::env::var("ZOETROPE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !is_installed(
        "the openai package for Python",
        Command::new(&python).args(["-c", "import openai; openai.OpenAI.videos"]),
    ) {
        return;
    }
    let server = Server::start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/system/openai_client.py");
    let mut client = Command::new(&python);
    client.arg(script).env("OPENAI_BASE_URL", format!("{}/v1", server.url)).env("OPENAI_API_KEY", &server.key);
    let output = client.output().expect("python runs");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
