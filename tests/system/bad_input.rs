//! Bad input gets a 4xx that says what to do, and nothing is queued or billed.

use crate::harness::{Answer, Client, Server, small};
use serde_json::{Value, json};

fn with(field: &str, value: Value) -> Value {
    let mut body = small("a red star");
    body[field] = value;
    body
}

#[track_caller]
fn refused(what: &str, answer: &Answer, hint: &str) {
    assert!((400..500).contains(&answer.status), "{what}: {} {}", answer.status, answer.message());
    let message = answer.message();
    assert!(message.to_lowercase().contains(&hint.to_lowercase()), "{what}: `{message}` does not say `{hint}`");
}

#[test]
fn each_bad_request_is_refused_with_its_reason_and_nothing_is_billed() {
    let server = Server::start();
    let client = server.client();
    let cases = [
        ("unknown function", with("prompt_hook", json!("nobody")), "there is no function"),
        ("unknown effect", with("effects", json!(["nobody"])), "there is no function"),
        ("a 100,000-character prompt", with("prompt", json!("x".repeat(100_000))), "at most"),
        ("an empty prompt", with("prompt", json!("")), "prompt"),
        ("no prompt", json!({ "steps": 1 }), "prompt"),
        ("size 13x7", with("size", json!("13x7")), "even"),
        ("size in words", with("size", json!("large")), "WIDTHxHEIGHT"),
        ("negative steps", with("steps", json!(-3)), "steps"),
        ("too many steps", with("steps", json!(100_000)), "steps"),
        ("negative seconds", with("seconds", json!("-1")), "seconds"),
        ("endless seconds", with("seconds", json!("1e300")), "seconds"),
        ("no frames a second", with("fps", json!(0)), "fps"),
        ("guidance that is no number", with("guidance", json!("strong")), "guidance"),
        ("unknown sampler", with("sampler", json!("magic")), "euler"),
        ("unknown model", with("model", json!("no-such-model")), "model"),
        ("a model by path", with("model", json!("/etc")), "model"),
        ("an unknown field", with("promt", json!("typo")), "promt"),
        ("too many effects", with("effects", json!(vec!["x"; 100])), "effects"),
    ];
    for (what, body, hint) in &cases {
        refused(what, &client.post("/v1/videos", body), hint);
    }
    let json_header = [("content-type", "application/json")];
    refused("broken JSON", &client.send("POST", "/v1/videos", &json_header, b"{\"prompt\":" as &[u8]), "json");
    refused("no content type", &client.send("POST", "/v1/videos", &[], b"prompt=a" as &[u8]), "content-type");
    nothing_happened(&client);
}

#[test]
fn a_huge_picture_is_refused_by_its_header() {
    let server = Server::start();
    let client = server.client();
    let start = std::time::Instant::now();
    let image = format!("data:image/png;base64,{}", base64_png_bomb(20_000, 20_000));
    refused(
        "a 20,000 x 20,000 PNG",
        &client.post("/v1/videos", &with("input_reference", json!({ "image_url": image }))),
        "pixels",
    );
    assert!(start.elapsed().as_secs() < 10);
    let text = "data:image/png;base64,aGVsbG8=";
    refused(
        "text as a picture",
        &client.post("/v1/videos", &with("input_reference", json!({ "image_url": text }))),
        "PNG",
    );
    let remote = json!({ "image_url": "http://127.0.0.1:1/a.png" });
    refused(
        "a picture behind a private address",
        &client.post("/v1/videos", &with("input_reference", remote)),
        "image_url",
    );
    nothing_happened(&client);
}

#[test]
fn uploads_that_are_no_functions_are_refused_with_what_to_do() {
    let server = Server::start();
    let client = server.client();
    let core_module = b"\0asm\x01\0\0\0";
    let empty_component = b"\0asm\x0d\0\x01\0";
    let truncated = &guest_bundle::FILM_GRAIN[..guest_bundle::FILM_GRAIN.len() / 2];
    refused("nothing", &client.put_component("f", b""), "empty");
    refused("text", &client.put_component("f", b"fn main() {}"), "not WebAssembly");
    refused("a core module", &client.put_component("f", core_module), "build a component");
    refused("a component without exports", &client.put_component("f", empty_component), "exports nothing");
    refused("half a component", &client.put_component("f", truncated), "broken");
    refused("a name that is a path", &client.put_component("..%2Fetc", guest_bundle::FILM_GRAIN), "name");
    refused("a name in capitals", &client.put_component("Grain", guest_bundle::FILM_GRAIN), "name");
    assert_eq!(client.get("/v1/functions").expect(200)["data"], json!([]));
}

#[test]
fn a_function_in_the_wrong_place_is_refused() {
    let server = Server::start();
    let client = server.client();
    client.put_component("grain", guest_bundle::FILM_GRAIN).expect(201);
    client.put_component("style", guest_bundle::PROMPT_STYLE).expect(201);
    refused(
        "an effect as a hook",
        &client.post("/v1/videos", &with("prompt_hook", json!("grain"))),
        "needs a prompt hook",
    );
    refused("a hook as an effect", &client.post("/v1/videos", &with("effects", json!(["style"]))), "needs a");
    nothing_happened(&client);
}

fn nothing_happened(client: &Client) {
    assert_eq!(client.get("/v1/videos").expect(200)["data"], json!([]), "nothing was queued");
    assert_eq!(client.gpu_ms(), 0, "nothing was billed");
}

/// A whole PNG file that claims to be this large and holds next to nothing.
fn base64_png_bomb(width: u32, height: u32) -> String {
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    const NO_PIXELS: &[u8] = &[0x78, 0x9c, 3, 0, 0, 0, 0, 1];
    let chunks = [(b"IHDR", &header[..]), (b"IDAT", NO_PIXELS), (b"IEND", &[])];
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in chunks {
        png.extend((data.len() as u32).to_be_bytes());
        let start = png.len();
        png.extend(kind);
        png.extend(data);
        png.extend(crc32(&png[start..]).to_be_bytes());
    }
    base64(&png)
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let letter = ALPHABET[(group >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { letter as char } else { '=' });
        }
    }
    text
}
