use crate::fixture::{Fixture, tenant, used, video};
use control_plane::{JobOutcome, JobStore};
use sqlx::{Connection, SqliteConnection};

async fn raw(fixture: &Fixture) -> SqliteConnection {
    SqliteConnection::connect(fixture.file().to_str().unwrap()).await.unwrap()
}

#[tokio::test]
async fn opening_again_changes_nothing() {
    let mut fixture = Fixture::new().await;
    let job = fixture.admit("acme").await;
    let schema = "SELECT group_concat(sql, ';') FROM (SELECT sql FROM sqlite_master ORDER BY name)";
    let before: String = sqlx::query_scalar(schema).fetch_one(&mut raw(&fixture).await).await.unwrap();
    for _ in 0..3 {
        fixture.crash_and_reopen().await;
    }
    let after: String = sqlx::query_scalar(schema).fetch_one(&mut raw(&fixture).await).await.unwrap();
    assert_eq!(before, after);
    assert!(fixture.store.get(&tenant("acme"), &job).await.unwrap().is_some());
}

#[tokio::test]
async fn not_even_sql_changes_the_ledger_or_a_function_version() {
    let fixture = Fixture::new().await;
    fixture.admit("acme").await;
    let claimed = fixture.claim().await.unwrap();
    fixture.store.settle(&claimed.lease, JobOutcome::Completed(video("a", 10)), &used(50)).await.unwrap();
    let kind = control_plane::FunctionKind::Director;
    let digest = pipeline::Digest::new([1; 32]);
    fixture.store.publish_function(&tenant("acme"), &"f".parse().unwrap(), kind, digest, 1).await.unwrap();
    let mut connection = raw(&fixture).await;
    for statement in [
        "UPDATE usage SET diffuse_gpu_ms = 0",
        "DELETE FROM usage",
        "INSERT INTO usage SELECT NULL, tenant, job, attempt, segment, at_ms, model, device, 0, 0, 0, 0, 0, 0, 0 FROM usage",
        "UPDATE function_versions SET size_bytes = 0",
    ] {
        assert!(sqlx::query(statement).execute(&mut connection).await.is_err(), "{statement}");
    }
    let page = fixture.store.export_usage(None, 0, 10).await.unwrap();
    assert_eq!(page.records.iter().map(|r| r.usage.diffuse_gpu_ms).collect::<Vec<_>>(), [50]);
}
