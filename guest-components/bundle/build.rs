//! Builds the guest workspace for wasm32-wasip2 with a cargo of its own and tells `lib.rs` where the components lie.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "wasm32-wasip2";

/// Sources that the components are made of, relative to the guest workspace.
const SOURCES: [&str; 8] =
    ["Cargo.toml", "Cargo.lock", "prompt-style", "film-grain", "letterbox", "storyboard", "misbehaving", "../wit"];

fn main() {
    let bundle = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let guests = bundle.parent().expect("the bundle lies in the guest workspace").to_owned();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", guests.join(source).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    ensure_target(&guests);
    // The guests' own folder: the outer cargo holds the lock of its target directory while this runs.
    let target_dir = guests.join("target");
    let mut build = inner("cargo", &guests);
    build.args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(&target_dir);
    run(&mut build, "see the compiler's messages above; the components lie in guest-components/");
    println!("cargo::rustc-env=GUESTS_DIR={}", target_dir.join(TARGET).join("release").display());
}

/// rustup installs the target with the toolchain of `rust-toolchain.toml`, but not into one that was there before.
fn ensure_target(guests: &Path) {
    let libs = inner("rustc", guests).args(["--print", "target-libdir", "--target", TARGET]).output();
    let installed = libs.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir());
    if !installed {
        run(
            inner("rustup", guests).args(["target", "add", TARGET]),
            "the sample components need the target: run `rustup target add wasm32-wasip2` and build again",
        );
    }
}

/// A command that does not inherit what the outer cargo set up for the host's own compilation.
fn inner(program: &str, guests: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(guests);
    let ours = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    let foreign = |name: &str| {
        (name.starts_with("CARGO") && !ours.iter().any(|prefix| name.starts_with(prefix)))
            || ["RUSTC", "RUSTDOC", "RUSTFLAGS", "LD_LIBRARY_PATH"].iter().any(|prefix| name.starts_with(prefix))
    };
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(foreign) {
            command.env_remove(name);
        }
    }
    command
}

fn run(command: &mut Command, hint: &str) {
    let failure = match command.status() {
        Ok(status) if status.success() => return,
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    println!("cargo::error=building the sample components failed: `{}`: {failure}", line.join(" "));
    println!("cargo::error={hint}");
    exit(1);
}
