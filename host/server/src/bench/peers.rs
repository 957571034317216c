//! Our networks beside other frameworks on the same weights, inputs and number of threads.
//!
//! Each framework is a process of its own (`tests/bench/peer.py`) that waits until it is asked for one forward. Runs take
//! turns, so that whatever else the machine does falls on all alike.

use pipeline::{StageError, StageResult};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use video_model::Precision;
use video_model::speed::{self, Part, Runner};

const SCRIPT: &str = include_str!("../../../../tests/bench/peer.py");

/// The framework whose result the errors are measured from.
const REFERENCE: &str = "torch-f32";
/// All frameworks, as the script calls them.
const FRAMEWORKS: [&str; 5] = [REFERENCE, "torch-bf16", "torch-compiled-bf16", "onnxruntime-f32", "openvino-bf16"];

/// Threads of a framework that has just answered spin for a while: they get time to fall asleep.
const PAUSE: Duration = Duration::from_millis(100);

/// One network, run by everybody.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The network and its size.
    pub name: String,
    /// Threads of each contender.
    pub threads: usize,
    /// Ours first.
    pub contenders: Vec<Contender>,
    /// Frameworks that did not run, and why.
    pub absent: Vec<String>,
}

/// One framework, or us in one precision.
#[derive(Debug, Clone, Serialize)]
pub struct Contender {
    /// Name, version and precision.
    pub name: String,
    /// Median wall time of one forward, in milliseconds.
    pub median_ms: f64,
    /// Shortest one.
    pub min_ms: f64,
    /// How many were timed.
    pub runs: u32,
    /// Its median in parts of our bf16 median: above 1 we are faster.
    pub times_ours: f64,
    /// Relative root mean square difference from torch's f32 result; none without torch.
    pub relative_rmse: Option<f64>,
}

/// Runs a transformer and a decoder with random weights here and in every framework that `python` can import. Blocks.
pub fn compare_with_peers(python: &Path, threads: usize, runs: u32) -> StageResult<Vec<Comparison>> {
    let folder = tempfile::tempdir().map_err(|error| failed("a temporary folder", &error))?;
    let script = folder.path().join("peer.py");
    std::fs::write(&script, SCRIPT).map_err(|error| failed("the script", &error))?;
    let peers = Peers { python: python.to_owned(), script, folder: folder.path().to_owned(), threads, runs };
    peers.make_folder()?;
    let transformer = "transformer: 12 blocks of 6x64, 1024 tokens, 128 of text";
    let decoder = "VAE decode: base 96, 2 latent frames of 16x16 to 5 pictures of 128x128";
    Ok(vec![
        peers.compare(transformer, Part::Transformer, &[Precision::Bf16, Precision::F32, Precision::Int8])?,
        peers.compare(decoder, Part::Vae, &[Precision::Bf16, Precision::F32])?,
    ])
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> StageError {
    StageError::Internal(format!("bench: {what}: {error}"))
}

struct Peers {
    python: PathBuf,
    script: PathBuf,
    folder: PathBuf,
    threads: usize,
    runs: u32,
}

impl Peers {
    /// The random model and its inputs.
    fn make_folder(&self) -> StageResult<()> {
        let made = Command::new(&self.python).arg(&self.script).arg("make").arg(&self.folder).output();
        let made = made.map_err(|error| StageError::invalid("peers", format!("{}: {error}", self.python.display())))?;
        if made.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&made.stderr);
        let last = said.lines().last().unwrap_or("nothing");
        let hint = "tests/bench/install makes a Python with everything";
        Err(StageError::invalid("peers", format!("{} cannot make the model: {last}; {hint}", self.python.display())))
    }

    fn compare(&self, name: &str, part: Part, ours: &[Precision]) -> StageResult<Comparison> {
        let (mut running, mut absent) = (Vec::new(), Vec::new());
        for &precision in ours {
            let runner = Runner::load(&self.folder, part, precision, self.threads);
            let runner = runner.map_err(|error| failed(part.name(), &error))?;
            running.push(Running::new(format!("zoetrope {precision}"), None, Forward::Ours(Box::new(runner))));
        }
        for framework in FRAMEWORKS {
            match Peer::start(self, framework, part)? {
                (peer, Answer { name: Some(name), .. }) => {
                    running.push(Running::new(name, Some(framework), Forward::Peer(peer)));
                }
                (_, answer) => absent.push(answer.absent.unwrap_or_else(|| format!("{framework} did not start"))),
            }
        }
        // The first of ours warms us up, as the peers have done.
        for round in 0..=self.runs.max(1) {
            for contender in &mut running {
                std::thread::sleep(PAUSE);
                let ms = contender.forward.run()?;
                contender.times.extend((round > 0).then_some(ms));
            }
        }
        let outputs: Vec<Vec<f32>> =
            running.iter_mut().map(|r| r.forward.output(&self.folder)).collect::<StageResult<_>>()?;
        let reference = running.iter().position(|r| r.framework == Some(REFERENCE)).map(|i| &outputs[i]);
        let ours_ms = median(&mut running[0].times);
        let figures = running.iter_mut().zip(&outputs).map(|(contender, output)| {
            let median_ms = median(&mut contender.times);
            Contender {
                name: contender.name.clone(),
                median_ms,
                min_ms: contender.times[0],
                runs: contender.times.len() as u32,
                times_ours: median_ms / ours_ms,
                relative_rmse: reference.and_then(|reference| speed::relative_rmse(output, reference)),
            }
        });
        let contenders = figures.collect();
        Ok(Comparison { name: name.to_owned(), threads: self.threads, contenders, absent })
    }
}

/// Sorts.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Running {
    name: String,
    framework: Option<&'static str>,
    forward: Forward,
    times: Vec<f64>,
}

impl Running {
    fn new(name: String, framework: Option<&'static str>, forward: Forward) -> Self {
        Self { name, framework, forward, times: Vec::new() }
    }
}

enum Forward {
    Ours(Box<Runner>),
    Peer(Peer),
}

impl Forward {
    /// Milliseconds of one forward.
    fn run(&mut self) -> StageResult<f64> {
        match self {
            Self::Ours(runner) => {
                let (time, _) = runner.run().map_err(|error| failed("our forward", &error))?;
                Ok(time.as_secs_f64() * 1000.0)
            }
            Self::Peer(peer) => {
                let answer = peer.ask("run")?;
                answer.ms.ok_or_else(|| failed("a framework", &"it gave no time"))
            }
        }
    }

    fn output(&mut self, folder: &Path) -> StageResult<Vec<f32>> {
        match self {
            Self::Ours(runner) => {
                let (_, output) = runner.run().map_err(|error| failed("our forward", &error))?;
                Ok(output.to_vec_f32())
            }
            Self::Peer(peer) => {
                let path = folder.join("output.safetensors");
                peer.ask(&format!("write {}", path.display()))?;
                speed::read_tensor(&path, "output").map_err(|error| failed("a framework's result", &error))
            }
        }
    }
}

/// A line of the script.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    name: Option<String>,
    absent: Option<String>,
    ms: Option<f64>,
}

/// A framework's process; it ends when its input is closed.
struct Peer {
    process: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it and waits for its first answer: who it is, or why not.
    fn start(peers: &Peers, framework: &str, part: Part) -> StageResult<(Self, Answer)> {
        let threads = peers.threads.to_string();
        let mut process = Command::new(&peers.python)
            .arg(&peers.script)
            .args(["serve", framework, part.name()])
            .arg(&peers.folder)
            .arg(&threads)
            .env("OMP_NUM_THREADS", &threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(framework, &error))?;
        let (questions, answers) = (process.stdin.take(), process.stdout.take());
        let answers = BufReader::new(answers.ok_or_else(|| failed(framework, &"it has no output"))?);
        let mut peer = Self { process, questions, answers };
        let first = peer.answer();
        Ok((peer, first.unwrap_or_default()))
    }

    fn ask(&mut self, question: &str) -> StageResult<Answer> {
        let questions = self.questions.as_mut().ok_or_else(|| failed("a framework", &"it has no input"))?;
        writeln!(questions, "{question}").and_then(|()| questions.flush()).map_err(|e| failed("a framework", &e))?;
        self.answer()
    }

    fn answer(&mut self) -> StageResult<Answer> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| failed("a framework", &error))?;
        serde_json::from_str(&line).map_err(|error| failed("a framework's answer", &error))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Closing its input ends it; an error would only mean that it has ended already.
        self.questions = None;
        let _ = self.process.wait();
    }
}
