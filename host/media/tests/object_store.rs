//! The folder store: content-addressed, whole or absent, and inside its root.

use media::{FolderStore, ObjectError};
use pipeline::ObjectKey;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

fn files_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_object_is_named_by_its_content_and_comes_back_whole_or_in_parts() {
    let dir = TempDir::new().unwrap();
    let store = FolderStore::open(&dir.path().join("objects")).unwrap();
    let stored = store.put(&key("acme/job-1"), b"abc".to_vec(), "mp4").await.unwrap();
    // The SHA-256 of "abc", from FIPS 180-4.
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(stored, key(&format!("acme/job-1/{digest}.mp4")));
    assert_eq!(store.get(&stored).await.unwrap(), b"abc");
    assert_eq!(store.len(&stored).await.unwrap(), 3);
    assert_eq!(store.get_range(&stored, 1, 1).await.unwrap(), b"b");
    assert_eq!(store.get_range(&stored, 1, u64::MAX).await.unwrap(), b"bc");
    assert_eq!(store.get_range(&stored, 3, 5).await.unwrap(), b"");
    assert!(matches!(store.get_range(&stored, 4, 1).await, Err(ObjectError::Range { len: 3, start: 4, .. })));
}

#[tokio::test]
async fn objects_outlive_the_store_that_wrote_them() {
    let dir = TempDir::new().unwrap();
    let stored = FolderStore::open(dir.path()).unwrap().put(&key("a"), b"kept".to_vec(), "png").await.unwrap();
    assert_eq!(FolderStore::open(dir.path()).unwrap().get(&stored).await.unwrap(), b"kept");
}

#[tokio::test]
async fn equal_bytes_are_one_object_and_leave_no_temporary_file() {
    let dir = TempDir::new().unwrap();
    let store = FolderStore::open(dir.path()).unwrap();
    let bytes = vec![7; 300_000];
    let prefix = key("acme");
    let puts: Vec<_> = (0..8)
        .map(|_| {
            let (store, prefix, bytes) = (store.clone(), prefix.clone(), bytes.clone());
            tokio::spawn(async move { store.put(&prefix, bytes, "bin").await.unwrap() })
        })
        .collect();
    let mut keys = Vec::new();
    for put in puts {
        keys.push(put.await.unwrap());
    }
    keys.dedup();
    assert_eq!((keys.len(), files_in(&dir.path().join("acme")).len()), (1, 1));
    assert_eq!(files_in(&dir.path().join(".incoming")), Vec::<String>::new());
    assert_eq!(store.usage_bytes(None).await.unwrap(), 300_000);
}

#[tokio::test]
async fn a_half_written_object_is_repaired_by_the_next_put() {
    let dir = TempDir::new().unwrap();
    let store = FolderStore::open(dir.path()).unwrap();
    let stored = store.put(&key("a"), b"complete".to_vec(), "bin").await.unwrap();
    std::fs::write(dir.path().join(stored.as_str()), b"comp").unwrap();
    assert_eq!(store.put(&key("a"), b"complete".to_vec(), "bin").await.unwrap(), stored);
    assert_eq!(store.get(&stored).await.unwrap(), b"complete");
}

#[tokio::test]
async fn what_a_crash_left_half_written_is_swept_away_and_never_counted() {
    let dir = TempDir::new().unwrap();
    let store = FolderStore::open(dir.path()).unwrap();
    let incoming = dir.path().join(".incoming");
    for (name, age) in [("old", Duration::from_secs(7200)), ("young", Duration::ZERO)] {
        let file = std::fs::File::create(incoming.join(name)).unwrap();
        file.set_len(100).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    assert_eq!(store.usage_bytes(None).await.unwrap(), 0);
    FolderStore::open(dir.path()).unwrap();
    // The young one may belong to a server that is still running.
    assert_eq!(files_in(&incoming), ["young"]);
}

#[tokio::test]
async fn usage_counts_a_prefix_and_nothing_beside_it() {
    let dir = TempDir::new().unwrap();
    let store = FolderStore::open(dir.path()).unwrap();
    for (prefix, bytes) in [("acme/one", 10), ("acme/two", 20), ("acme-2/one", 40)] {
        store.put(&key(prefix), vec![1; bytes], "bin").await.unwrap();
    }
    assert_eq!(store.usage_bytes(Some(&key("acme"))).await.unwrap(), 30);
    assert_eq!(store.usage_bytes(Some(&key("acme/two"))).await.unwrap(), 20);
    assert_eq!(store.usage_bytes(Some(&key("nobody"))).await.unwrap(), 0);
    assert_eq!(store.usage_bytes(None).await.unwrap(), 70);
}

#[tokio::test]
async fn deleting_one_job_leaves_the_same_bytes_of_another() {
    let dir = TempDir::new().unwrap();
    let store = FolderStore::open(dir.path()).unwrap();
    let one = store.put(&key("acme/one"), b"same".to_vec(), "mp4").await.unwrap();
    let two = store.put(&key("acme/two"), b"same".to_vec(), "mp4").await.unwrap();
    store.delete(&one).await.unwrap();
    store.delete(&one).await.unwrap();
    assert!(matches!(store.get(&one).await, Err(ObjectError::NotFound(missing)) if missing == one));
    assert_eq!(store.get(&two).await.unwrap(), b"same");
}

#[tokio::test]
async fn a_key_cannot_name_a_folder_a_file_inside_a_file_or_a_bad_extension() {
    let dir = TempDir::new().unwrap();
    let store = FolderStore::open(dir.path()).unwrap();
    let stored = store.put(&key("acme"), b"x".to_vec(), "bin").await.unwrap();
    assert!(matches!(store.get(&key("acme")).await, Err(ObjectError::NotFound(_))));
    assert!(matches!(store.len(&key(&format!("{stored}/more"))).await, Err(ObjectError::NotFound(_))));
    store.delete(&key("acme")).await.unwrap();
    assert_eq!(store.get(&stored).await.unwrap(), b"x");
    for bad in ["", "mp4/x", "../x", "MP4", "a.b", "farfartoolong"] {
        assert!(matches!(store.put(&key("acme"), vec![1], bad).await, Err(ObjectError::Name { .. })), "{bad:?}");
    }
    let long: ObjectKey = "a".repeat(250).parse().unwrap();
    assert!(matches!(store.put(&long, vec![1], "bin").await, Err(ObjectError::Name { .. })));
}

#[cfg(unix)]
#[tokio::test]
async fn links_lead_nowhere() {
    use std::os::unix::fs::symlink;
    let outside = TempDir::new().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    let dir = TempDir::new().unwrap();
    let store = FolderStore::open(dir.path()).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
    symlink(outside.path(), dir.path().join("folder")).unwrap();
    for escaping in ["file", "folder/secret"] {
        assert!(matches!(store.get(&key(escaping)).await, Err(ObjectError::NotFound(_))), "{escaping}");
        assert!(store.len(&key(escaping)).await.is_err());
        store.delete(&key(escaping)).await.unwrap();
    }
    assert!(store.put(&key("folder"), b"planted".to_vec(), "bin").await.is_err());
    assert_eq!(files_in(outside.path()), ["secret"]);
    assert_eq!(store.usage_bytes(None).await.unwrap(), 0);
}
