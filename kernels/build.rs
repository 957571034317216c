//! Puts the compiled kernels where the program embeds them: a table of `(group, fatbin)` for every `cuda/<group>.cu`. A
//! checkout without fatbins builds all the same; its table has empty images, and devices then run nothing.

use std::fmt::Write;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let (manifest, out) = (std::env::var("CARGO_MANIFEST_DIR"), std::env::var("OUT_DIR"));
    let (manifest, out) = (manifest.unwrap_or_default(), out.unwrap_or_default());
    println!("cargo::rerun-if-changed=fatbins");
    println!("cargo::rerun-if-changed=cuda");
    let mut table = String::from("&[\n");
    for source in std::fs::read_dir(Path::new(&manifest).join("cuda"))? {
        let source = source?.path();
        let Some(group) = source.file_stem().and_then(|stem| stem.to_str()) else { continue };
        if source.extension().is_some_and(|extension| extension == "cu") {
            let file = format!("{group}.fatbin");
            let image = std::fs::read(Path::new(&manifest).join("fatbins").join(&file)).unwrap_or_default();
            std::fs::write(Path::new(&out).join(&file), image)?;
            let _ = writeln!(table, "    ({group:?}, include_bytes!({file:?}).as_slice()),");
        }
    }
    std::fs::write(Path::new(&out).join("fatbins.rs"), table + "]\n")
}
