use crate::fixture::{Fixture, tenant};
use control_plane::{ControlError, Role};
use pipeline::Clock;

#[tokio::test]
async fn the_operator_key_is_made_and_shown_once() {
    let mut fixture = Fixture::new().await;
    let key = fixture.store.ensure_operator_key().await.unwrap().unwrap();
    assert!(key.expose().starts_with("zt_") && key.expose().len() == 67);
    assert!(fixture.store.ensure_operator_key().await.unwrap().is_none());
    fixture.crash_and_reopen().await;
    assert!(fixture.store.ensure_operator_key().await.unwrap().is_none());
    let principal = fixture.store.authenticate(key.expose()).await.unwrap().unwrap();
    assert_eq!((principal.role, principal.tenant), (Role::Operator, tenant("default")));
}

#[tokio::test]
async fn no_file_of_the_database_holds_a_key() {
    let fixture = Fixture::new().await;
    let operator = fixture.store.ensure_operator_key().await.unwrap().unwrap();
    let (_, secret) = fixture.store.create_key(&tenant("acme"), Role::Tenant, "ci").await.unwrap();
    fixture.store.authenticate(secret.expose()).await.unwrap().unwrap();
    let mut seen_bytes = 0;
    for entry in std::fs::read_dir(fixture.file().parent().unwrap()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        seen_bytes += bytes.len();
        for key in [&operator, &secret] {
            // Neither the key nor its random part, as text or as bytes.
            let digits = &key.expose()[3..];
            let raw = hex::decode(digits).unwrap();
            for needle in [key.expose().as_bytes(), digits.as_bytes(), &raw] {
                assert!(!bytes.windows(needle.len()).any(|w| w == needle));
            }
        }
    }
    assert!(seen_bytes > 10_000, "the files that were searched are the database");
}

#[tokio::test]
async fn only_the_whole_valid_key_opens_anything() {
    let fixture = Fixture::new().await;
    let (_, secret) = fixture.store.create_key(&tenant("acme"), Role::Tenant, "ci").await.unwrap();
    let key = secret.expose();
    let last_changed = format!("{}{}", &key[..66], if key.ends_with('0') { '1' } else { '0' });
    for wrong in ["", "zt_", &key[..66], &format!("{key}0"), &key.to_uppercase(), &last_changed, "' OR 1=1 --", "zt_é"]
    {
        assert!(fixture.store.authenticate(wrong).await.unwrap().is_none(), "{wrong}");
    }
    assert_eq!(fixture.store.authenticate(key).await.unwrap().unwrap().tenant, tenant("acme"));
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_and_only_its_tenant_may_revoke_it() {
    let fixture = Fixture::new().await;
    let (key, secret) = fixture.store.create_key(&tenant("acme"), Role::Tenant, "ci").await.unwrap();
    let stranger = fixture.store.revoke_key(&tenant("other"), &key.id).await;
    assert!(matches!(stranger, Err(ControlError::NotFound { .. })));
    assert!(fixture.store.authenticate(secret.expose()).await.unwrap().is_some());
    let revoked = fixture.store.revoke_key(&tenant("acme"), &key.id).await.unwrap();
    assert_eq!(revoked.revoked_ms, Some(fixture.clock.now_ms()));
    assert!(fixture.store.authenticate(secret.expose()).await.unwrap().is_none());
}

#[tokio::test]
async fn the_last_use_is_noted_to_the_minute_and_listed_without_the_secret() {
    let fixture = Fixture::new().await;
    let (_, secret) = fixture.store.create_key(&tenant("acme"), Role::Tenant, "ci").await.unwrap();
    let first_ms = fixture.clock.now_ms();
    fixture.store.authenticate(secret.expose()).await.unwrap();
    fixture.clock.advance_ms(59_999);
    fixture.store.authenticate(secret.expose()).await.unwrap();
    assert_eq!(fixture.store.keys(&tenant("acme")).await.unwrap()[0].last_used_ms, Some(first_ms));
    fixture.clock.advance_ms(1);
    fixture.store.authenticate(secret.expose()).await.unwrap();
    let listed = fixture.store.keys(&tenant("acme")).await.unwrap();
    assert_eq!(listed[0].last_used_ms, Some(first_ms + 60_000));
    assert_eq!((listed[0].label.as_str(), listed[0].prefix.as_str()), ("ci", &secret.expose()[..11]));
    assert!(!format!("{listed:?} {secret:?}").contains(secret.expose()));
}

#[tokio::test]
async fn a_key_for_a_tenant_that_is_not_there_is_refused() {
    let fixture = Fixture::new().await;
    let made = fixture.store.create_key(&tenant("nobody"), Role::Tenant, "").await;
    assert!(matches!(made, Err(ControlError::NotFound { kind: "tenant", .. })));
}
