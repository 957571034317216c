//! Compiled components are kept on disk, and nothing that was changed there is ever run.

use crate::support::{FakeEngine, Host, context, request};
use guest_bundle::{LETTERBOX, PROMPT_STYLE};
use pipeline::{FunctionRef, Plan};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use wasm_runtime::Limits;

fn host_at(folder: &Path) -> Host {
    Host::build(Limits::default(), folder, FakeEngine::default())
}

/// Runs the hook on a fresh runtime, with or without the component in the catalog.
async fn run(folder: &Path, in_catalog: bool) -> Result<String, &'static str> {
    let host = host_at(folder);
    let hook = host.function("style", PROMPT_STYLE, &[]);
    if !in_catalog {
        host.catalog.0.lock().unwrap().clear();
    }
    let planned = host.runtime.plan(&context(), &hook, request("a red star")).await;
    planned.map(|request| request.prompt).map_err(|error| error.code())
}

fn compiled(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "cwasm")).collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_restarted_runtime_needs_neither_the_component_nor_the_compiler() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(folder.path(), false).await, Err("unavailable"));
    let first = run(folder.path(), true).await.unwrap();
    assert_eq!(run(folder.path(), false).await.unwrap(), first);
    assert_eq!(compiled(folder.path()).len(), 1);
}

#[tokio::test]
async fn files_that_were_changed_are_ignored_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), true).await.unwrap();
    let file = compiled(folder.path()).remove(0);
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut unsigned = good.clone();
    unsigned[..32].fill(0);
    for bad in [&flipped[..], &unsigned, &good[..good.len() - 1], &good[..20], &[], &good[32..]] {
        fs::write(&file, bad).unwrap();
        assert_eq!(run(folder.path(), false).await, Err("unavailable"), "a changed file was run");
        run(folder.path(), true).await.unwrap();
        assert_eq!(fs::read(&file).unwrap().len(), good.len(), "the file was not replaced");
    }
}

#[tokio::test]
async fn one_components_code_cannot_stand_in_for_anothers() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), true).await.unwrap();
    let hook = compiled(folder.path()).remove(0);
    host_at(folder.path()).runtime.validate(LETTERBOX).await.unwrap();
    let other = compiled(folder.path()).into_iter().find(|path| *path != hook).unwrap();
    fs::copy(&other, &hook).unwrap();
    assert_eq!(run(folder.path(), false).await, Err("unavailable"));
}

#[tokio::test]
async fn code_signed_with_another_key_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), true).await.unwrap();
    fs::write(folder.path().join("mac.key"), [7; 32]).unwrap();
    assert_eq!(run(folder.path(), false).await, Err("unavailable"));
}

#[tokio::test]
async fn the_folder_and_its_key_are_for_this_user_only() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("a/b");
    host_at(&cache);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&cache), mode(&cache.join("mac.key"))), (0o700, 0o600));
}

#[tokio::test]
async fn the_oldest_code_makes_room_for_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::build(
        Limits { aot_cache_bytes_max: 1, loaded_bytes_max: 1, ..Limits::default() },
        folder.path(),
        FakeEngine::default(),
    );
    for wasm in [PROMPT_STYLE, LETTERBOX, PROMPT_STYLE] {
        host.runtime.validate(wasm).await.unwrap();
        assert_eq!(compiled(folder.path()).len(), 1);
    }
    host.serves_on().await;
}

#[tokio::test]
async fn bytes_that_are_not_the_digests_are_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let host = host_at(folder.path());
    let hook: FunctionRef = host.function("style", PROMPT_STYLE, &[]);
    host.catalog.0.lock().unwrap().insert(hook.digest, guest_bundle::misbehaving::HOOK.to_vec());
    let error = host.runtime.plan(&context(), &hook, request("a star")).await.unwrap_err();
    assert_eq!(error.code(), "internal", "{error}");
}
