//! Puts the compiled kernels where the program embeds them: a table of `(group, image)` for every `cuda/<group>.cu`.
//!
//! The image is the fatbin that `scripts/fatbins` made from the present sources. Where there is none, or an older one, it is
//! a text that no driver takes: the program builds all the same, and says what to do when it is asked to use the group.
#![allow(clippy::print_stdout, reason = "it is how a build script talks to cargo")]

mod sources;

use std::fmt::Write;
use std::path::Path;

const NOT_COMPILED: &[u8] = b"scripts/fatbins has not compiled the present source of this module\0";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=fatbins");
    println!("cargo::rerun-if-changed=cuda");
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    let mut table = String::from("&[\n");
    for group in sources::groups(Path::new("cuda"))? {
        let file = format!("{group}.fatbin");
        let compiled = sources::fatbin(Path::new("."), &group)?;
        std::fs::write(Path::new(&out).join(&file), compiled.as_deref().unwrap_or(NOT_COMPILED))?;
        let _ = writeln!(table, "    ({group:?}, include_bytes!({file:?}).as_slice()),");
    }
    std::fs::write(Path::new(&out).join("fatbins.rs"), table + "]\n")
}
