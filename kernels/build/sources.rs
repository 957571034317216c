//! Which sources a fatbin is made from, and whether it is made from the present ones.

use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    io,
    path::Path,
};

/// Names of the `.cu` files of `cuda`, without the ending.
pub fn groups(cuda: &Path) -> io::Result<BTreeSet<String>> {
    let mut groups = BTreeSet::new();
    for entry in std::fs::read_dir(cuda)? {
        if let Some(group) = entry?.file_name().to_str().and_then(|name| name.strip_suffix(".cu")) {
            groups.insert(group.to_owned());
        }
    }
    Ok(groups)
}

/// The group's fatbin, when the manifest of the `kernels` folder `root` says that it was made from the present sources.
pub fn fatbin(root: &Path, group: &str) -> io::Result<Option<Vec<u8>>> {
    let fatbins = root.join("fatbins");
    let (Ok(image), Ok(manifest)) = (
        std::fs::read(fatbins.join(format!("{group}.fatbin"))),
        std::fs::read_to_string(fatbins.join("manifest.json")),
    ) else {
        return Ok(None);
    };
    // The two stand together in the manifest, and the first holds the group's name.
    let sources = hash_of_sources(&root.join("cuda"), group)?;
    let record = format!("\"sources\": \"{sources}\",\n  \"fatbin\": \"{}\"", hex(&Sha256::digest(&image)));
    Ok(manifest.contains(&record).then_some(image))
}

/// SHA-256 over what `sha256sum` would print for the group's source and all headers that it includes, sorted by name.
fn hash_of_sources(cuda: &Path, group: &str) -> io::Result<String> {
    let mut texts = BTreeMap::new();
    let mut waiting = vec![format!("{group}.cu")];
    while let Some(name) = waiting.pop() {
        if texts.contains_key(&name) {
            continue;
        }
        let text = std::fs::read_to_string(cuda.join(&name))?;
        // The emulator's side is not what a GPU gets.
        waiting.extend(includes(&text).filter(|header| !header.starts_with("emulator/")).map(str::to_owned));
        texts.insert(name, text);
    }
    let mut sums = String::new();
    for (name, text) in texts {
        let _ = writeln!(sums, "{}  {name}", hex(&Sha256::digest(text)));
    }
    Ok(hex(&Sha256::digest(sums)))
}

fn includes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.trim_start().strip_prefix("#include \"")?.split('"').next())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
