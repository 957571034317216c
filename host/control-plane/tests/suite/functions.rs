use crate::fixture::{Fixture, ROOMY, admission, tenant};
use control_plane::*;
use pipeline::{Digest, Flow, FunctionName, FunctionRef};

fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

fn digest(byte: u8) -> Digest {
    Digest::new([byte; 32])
}

async fn publish(fixture: &Fixture, function: &str, byte: u8) -> Published {
    let kind = FunctionKind::FrameEffect;
    fixture.store.publish_function(&tenant("acme"), &name(function), kind, digest(byte), 1000).await.unwrap()
}

#[tokio::test]
async fn a_name_means_its_latest_version_and_old_versions_stay() {
    let fixture = Fixture::new().await;
    assert!(publish(&fixture, "grain", 1).await.is_new);
    assert_eq!(publish(&fixture, "grain", 2).await.version.version, 2);
    let latest = fixture.store.function(&tenant("acme"), &name("grain"), None).await.unwrap().unwrap();
    let first = fixture.store.function(&tenant("acme"), &name("grain"), Some(1)).await.unwrap().unwrap();
    assert_eq!((latest.digest, first.digest), (digest(2), digest(1)));
    assert!(fixture.store.function(&tenant("acme"), &name("grain"), Some(3)).await.unwrap().is_none());
    assert_eq!(fixture.store.function_versions(&tenant("acme"), &name("grain")).await.unwrap(), [latest, first]);
}

#[tokio::test]
async fn the_same_component_again_is_not_a_new_version_but_a_rollback_is() {
    let fixture = Fixture::new().await;
    publish(&fixture, "grain", 1).await;
    assert!(!publish(&fixture, "grain", 1).await.is_new);
    publish(&fixture, "grain", 2).await;
    let back = publish(&fixture, "grain", 1).await;
    assert_eq!((back.is_new, back.version.version), (true, 3));
}

#[tokio::test]
async fn lists_run_by_name_with_the_latest_of_each() {
    let fixture = Fixture::new().await;
    for (function, byte) in [("b", 1), ("a", 2), ("c", 3), ("b", 4)] {
        publish(&fixture, function, byte).await;
    }
    let page = fixture.store.functions(&tenant("acme"), None, 2).await.unwrap();
    assert_eq!(page.iter().map(|f| (f.name.as_str(), f.version)).collect::<Vec<_>>(), [("a", 1), ("b", 2)]);
    let rest = fixture.store.functions(&tenant("acme"), Some(&page[1].name), 2).await.unwrap();
    assert_eq!(rest.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["c"]);
}

#[tokio::test]
async fn another_tenants_functions_do_not_exist() {
    let fixture = Fixture::new().await;
    publish(&fixture, "grain", 1).await;
    let other = tenant("other");
    assert!(fixture.store.function(&other, &name("grain"), None).await.unwrap().is_none());
    assert!(fixture.store.function_versions(&other, &name("grain")).await.unwrap().is_empty());
    assert!(fixture.store.functions(&other, None, 10).await.unwrap().is_empty());
    let deleted = fixture.store.delete_function(&other, &name("grain")).await;
    assert!(matches!(deleted, Err(ControlError::NotFound { .. })));
    assert!(fixture.store.function(&tenant("acme"), &name("grain"), None).await.unwrap().is_some());
}

#[tokio::test]
async fn deleting_names_only_components_that_nothing_needs() {
    let fixture = Fixture::new().await;
    for (function, byte) in [("grain", 1), ("grain", 2), ("grain", 3), ("copy", 2)] {
        publish(&fixture, function, byte).await;
    }
    // A waiting job will still run the component of version 3.
    let mut waiting = admission("acme", 0);
    let hook = FunctionRef { name: name("grain"), digest: digest(3), config: Default::default() };
    waiting.spec.flow = Flow::Staged { prompt_hook: Some(hook) };
    let job = fixture.store.admit(waiting).await.unwrap().job;
    assert_eq!(fixture.store.delete_function(&tenant("acme"), &name("grain")).await.unwrap(), [digest(1)]);
    assert!(fixture.store.function(&tenant("acme"), &name("grain"), None).await.unwrap().is_none());
    assert_eq!(fixture.store.get(&tenant("acme"), &job.id).await.unwrap().unwrap().spec, job.spec);
}

#[tokio::test]
async fn components_count_once_against_the_storage_quota() {
    let fixture = Fixture::new().await;
    let quotas = Quotas { stored_bytes_max: 2500, ..ROOMY };
    fixture.store.set_quotas(&tenant("acme"), quotas).await.unwrap();
    publish(&fixture, "a", 1).await;
    publish(&fixture, "b", 2).await;
    let kind = FunctionKind::Director;
    let third = fixture.store.publish_function(&tenant("acme"), &name("c"), kind, digest(3), 1000).await;
    let Err(ControlError::QuotaExceeded { which: QuotaKind::StoredBytes, used: 2000, retry_after_ms: None, .. }) =
        third
    else {
        panic!("{third:?}")
    };
}
