//! `zoetrope models`: folders and downloads become models that requests can name.

use crate::fake_hub::{COMMIT, FakeHub, ID, Mood};
use crate::harness::{Server, file, small, zoetrope};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

fn default_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../video-model/default-model/weights")
}

/// `zoetrope models …` on a data folder, with the hub there is.
struct Models {
    data_dir: PathBuf,
    endpoint: String,
    token: Option<&'static str>,
}

impl Models {
    fn new(dir: &TempDir, endpoint: &str) -> Self {
        Self { data_dir: file(dir, "data"), endpoint: endpoint.to_owned(), token: None }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = zoetrope();
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", self.data_dir.join("hf")).env_remove("HF_TOKEN");
        command.envs(self.token.map(|token| ("HF_TOKEN", token)));
        command.args(["--json", "models"]).args(args).arg("--data-dir").arg(&self.data_dir);
        command.output().expect("the program starts")
    }

    /// The last line, of a command that succeeds.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
    }

    /// The exit code and the message of a command that fails.
    #[track_caller]
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success(), "{args:?}: {text}");
        let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        (output.status.code().expect("a code"), last["error"].as_str().expect("a message").to_owned())
    }

    fn names(&self) -> Vec<String> {
        let list = self.ok(&["list"]);
        list.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect()
    }
}

#[track_caller]
fn says(message: &str, words: &[&str]) {
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

fn copy_of_default_model(to: &Path) {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &target)
            } else {
                fs::copy(entry.path(), target).map(drop).unwrap()
            }
        }
    }
    copy(&default_model(), to);
}

#[test]
fn a_hubs_model_is_fetched_checked_used_verified_and_removed() {
    let (dir, hub) = (TempDir::new().unwrap(), FakeHub::serve(&default_model()));
    let models = Models::new(&dir, &hub.url);
    let added = models.ok(&["add", ID]);
    assert_eq!((added["name"].as_str(), added["family"].as_str()), (Some("tiny"), Some("Wan (own layout)")));
    assert!(added["source"].as_str().unwrap().ends_with(COMMIT), "{added}");
    assert!(hub.asked("transformer/diffusion_pytorch_model.bin").is_empty(), "other formats are not fetched");
    assert_eq!(hub.asked(TRANSFORMER), [0], "once, from the start");
    assert_eq!(models.names(), ["default", "tiny"]);
    models.ok(&["add", ID]);
    assert!(hub.asked(TRANSFORMER).is_empty(), "what is there is not fetched again");

    let out = file(&dir, "a.mp4");
    let mut generate = zoetrope();
    generate.args(["generate", "--model", "tiny", "--prompt", "a red star", "--steps", "1", "--frames", "2"]);
    generate.args(["--seconds", "0.25", "--fps", "8", "--data-dir"]).arg(&models.data_dir).arg("--out").arg(&out);
    assert!(generate.status().unwrap().success() && out.is_file());

    assert_eq!(models.ok(&["verify", "tiny"])["whole"], json!(true));
    let sums = fs::read_to_string(models.data_dir.join("models/tiny.sha256")).unwrap();
    says(&sums, &[TRANSFORMER, "model_index.json", "tokenizer/tokenizer.json"]);
    let transformer = Path::new(added["source"].as_str().unwrap()).join(TRANSFORMER);
    let mut bytes = fs::read(&transformer).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&transformer, bytes).unwrap();
    let (code, message) = models.fails(&["verify", "tiny"]);
    assert_eq!(code, 1);
    says(&message, &["tiny", TRANSFORMER, "not what was downloaded"]);

    assert_eq!(models.ok(&["remove", "tiny"])["files_removed"], json!(true));
    assert_eq!(models.names(), ["default"]);
    assert!(!transformer.exists() && fs::read_dir(models.data_dir.join("models/hub")).unwrap().next().is_none());
}

#[test]
fn a_broken_connection_goes_on_where_it_stopped_in_this_run_and_in_the_next() {
    let (dir, hub) = (TempDir::new().unwrap(), FakeHub::serve(&default_model()));
    let models = Models::new(&dir, &hub.url);
    let megabyte = 1 << 20;
    hub.be(Mood { cut_bytes: Some(megabyte), ..Mood::default() });
    let (code, message) = models.fails(&["add", ID]);
    assert_eq!(code, 1);
    says(&message, &[TRANSFORMER, "Run the same command again"]);
    let asked = hub.asked(TRANSFORMER);
    assert!(asked.len() > 2 && asked[0] == 0 && asked.windows(2).all(|pair| pair[0] < pair[1]), "{asked:?}");
    assert_eq!(models.names(), ["default"], "half a model is none");
    hub.be(Mood::default());
    models.ok(&["add", ID]);
    let asked = hub.asked(TRANSFORMER);
    assert!(asked.len() == 1 && asked[0] >= megabyte, "{asked:?}");
    assert_eq!(models.ok(&["verify", "tiny"])["whole"], json!(true));
}

#[test]
fn a_wrong_checksum_is_fetched_once_more_and_then_refused() {
    let (dir, hub) = (TempDir::new().unwrap(), FakeHub::serve(&default_model()));
    let models = Models::new(&dir, &hub.url);
    hub.be(Mood { spoil: Some(TRANSFORMER.to_owned()), ..Mood::default() });
    let (code, message) = models.fails(&["add", ID]);
    assert_eq!(code, 1);
    says(&message, &[TRANSFORMER, "wrong checksum"]);
    assert_eq!(hub.asked(TRANSFORMER), [0, 0]);
    assert_eq!(models.names(), ["default"]);
    hub.be(Mood::default());
    models.ok(&["add", ID, "--name", "whole"]);
    assert_eq!(models.ok(&["verify", "whole"])["whole"], json!(true));
}

#[test]
fn what_a_hub_refuses_is_explained() {
    let (dir, hub) = (TempDir::new().unwrap(), FakeHub::serve(&default_model()));
    let mut models = Models::new(&dir, &hub.url);
    let (code, message) = models.fails(&["add", "owner/nothing"]);
    assert_eq!(code, 3);
    says(&message, &["owner/nothing", "no such model"]);
    let (code, message) = models.fails(&["add", "no id at all"]);
    assert_eq!(code, 3);
    says(&message, &["neither a folder nor a hub's id", "owner/name"]);
    hub.be(Mood { token: Some("secret".to_owned()), ..Mood::default() });
    let (code, message) = models.fails(&["add", ID]);
    assert_eq!(code, 3);
    says(&message, &["gated", "HF_TOKEN"]);
    models.token = Some("secret");
    models.ok(&["add", ID]);
    let nowhere = Models::new(&TempDir::new().unwrap(), "http://127.0.0.1:1");
    let (code, message) = nowhere.fails(&["add", ID]);
    assert_eq!(code, 1);
    says(&message, &["http://127.0.0.1:1", "reachable"]);
}

#[test]
fn a_folder_becomes_a_model_of_the_server_and_stays_when_it_is_removed() {
    let dir = TempDir::new().unwrap();
    let folder = file(&dir, "My-Model-Diffusers");
    copy_of_default_model(&folder);
    let models = Models::new(&dir, "http://127.0.0.1:1");
    let path = folder.to_str().unwrap();
    assert_eq!(models.ok(&["add", path])["name"], json!("my-model"));
    let (code, message) = models.fails(&["add", default_model().to_str().unwrap(), "--name", "my-model"]);
    assert_eq!(code, 3);
    says(&message, &["my-model", "--name"]);
    assert_eq!(models.ok(&["verify", "my-model"])["checksums"], json!(false));
    let shown = models.ok(&["show", "my-model"]);
    assert_eq!(shown["parts"].as_array().unwrap().len(), 3, "{shown}");

    let server = Server::start_in(&models.data_dir);
    let mut body = small("a red star");
    body["model"] = json!("my-model");
    assert_eq!(server.client().make(&body)["status"], "completed");
    drop(server);

    fs::remove_file(folder.join(TRANSFORMER)).unwrap();
    let list = models.ok(&["list"]);
    let broken = list.as_array().unwrap().iter().find(|model| model["name"] == "my-model").unwrap();
    says(broken["error"].as_str().unwrap(), &["transformer", "no weights"]);
    assert_eq!(models.ok(&["remove", "my-model"])["files_removed"], json!(false));
    assert!(folder.join("model_index.json").is_file());
    let (code, message) = models.fails(&["remove", "my-model"]);
    assert_eq!(code, 3);
    says(&message, &["my-model", "models list"]);
}

#[test]
fn a_folder_that_is_not_whole_is_refused_by_file_and_tensor_before_anything_is_loaded() {
    let dir = TempDir::new().unwrap();
    let models = Models::new(&dir, "http://127.0.0.1:1");
    let refused = |name: &str, damage: &dyn Fn(&Path), words: &[&str]| {
        let folder = file(&dir, name);
        copy_of_default_model(&folder);
        damage(&folder);
        let (code, message) = models.fails(&["add", folder.to_str().unwrap()]);
        assert_eq!(code, 3);
        says(&message, words);
    };
    let cut = |folder: &Path| {
        fs::OpenOptions::new().write(true).open(folder.join(TRANSFORMER)).unwrap().set_len(999_999).unwrap()
    };
    refused("cut", &cut, &[TRANSFORMER, "cut off"]);
    let other =
        |folder: &Path| fs::write(folder.join("model_index.json"), r#"{"_class_name": "LTXPipeline"}"#).unwrap();
    refused("other", &other, &["LTXPipeline", "not supported"]);
    let wider = |folder: &Path| {
        let path = folder.join("transformer/config.json");
        let text = fs::read_to_string(&path).unwrap().replacen("\"ffn_dim\": ", "\"ffn_dim\": 1", 1);
        fs::write(path, text).unwrap();
    };
    refused("wider", &wider, &["blocks.0.ffn.net.0.proj.weight", "the config needs"]);
    assert_eq!(models.names(), ["default"]);
}
