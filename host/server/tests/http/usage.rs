use crate::harness::Api;
use serde_json::json;

#[tokio::test]
async fn a_tenant_sees_its_own_usage_and_an_operator_everyones() {
    let api = Api::new().await;
    let id = api.completed(b"video").await;
    for (path, key, sums) in [
        ("/v1/usage", &api.alice, 1),
        ("/v1/usage", &api.bob, 0),
        ("/v1/usage", &api.operator, 1),
        ("/v1/usage?tenant=alice", &api.alice, 1),
        ("/v1/usage?tenant=alice&group_by=day", &api.operator, 1),
        ("/v1/usage?tenant=bob", &api.operator, 0),
        ("/v1/usage?from=9999999999", &api.operator, 0),
        ("/v1/usage?to=1", &api.operator, 0),
    ] {
        let report = api.get(path, key).await.expect(200);
        let data = report["data"].as_array().unwrap();
        assert_eq!(data.len(), sums, "{path}");
        if let Some(sum) = data.first() {
            assert_eq!((&sum["usage"]["diffuse_gpu_ms"], &sum["jobs"]), (&json!(40), &json!(1)), "{path}");
        }
    }
    let by_tenant = api.get("/v1/usage?group_by=tenant", &api.operator).await.expect(200);
    assert_eq!(by_tenant["data"][0]["key"], "alice");
    let export = api.get("/v1/usage/export", &api.alice).await.expect(200);
    assert_eq!((&export["data"][0]["job"], &export["data"][0]["usage"]["encode_cpu_ms"]), (&json!(id), &json!(5)));
}

#[tokio::test]
async fn an_export_goes_on_where_its_cursor_says_and_repeats_itself() {
    let api = Api::new().await;
    for _ in 0..3 {
        api.completed(b"video").await;
    }
    let first = api.get("/v1/usage/export?limit=2", &api.alice).await.expect(200);
    assert_eq!((first["data"].as_array().unwrap().len(), &first["has_more"]), (2, &json!(true)));
    let next = format!("/v1/usage/export?limit=2&cursor={}", first["next_cursor"]);
    let rest = api.get(&next, &api.alice).await.expect(200);
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
    assert_eq!(api.get("/v1/usage/export?limit=2", &api.alice).await.expect(200), first);
    assert_eq!(api.get(&next, &api.alice).await.expect(200), rest);
    assert_eq!(api.get("/v1/usage/export", &api.bob).await.expect(200)["data"], json!([]));
}
