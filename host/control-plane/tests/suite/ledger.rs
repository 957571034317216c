use crate::fixture::{DAY_MS, Fixture, failed, tenant, used};
use control_plane::*;
use pipeline::Clock;
use proptest::prelude::*;

/// Runs `jobs` jobs to their end, alternating between two tenants, with 1, 2, 3, … GPU ms.
async fn filled(jobs: u64) -> Fixture {
    let fixture = Fixture::new().await;
    for gpu_ms in 1..=jobs {
        fixture.admit(if gpu_ms % 2 == 0 { "acme" } else { "other" }).await;
        let claimed = fixture.claim().await.unwrap();
        fixture.store.settle(&claimed.lease, failed("internal"), &used(gpu_ms)).await.unwrap();
    }
    fixture
}

async fn export(store: &SqliteStore, tenant: Option<&pipeline::TenantId>, cuts: &[u32]) -> Vec<UsageRecord> {
    let (mut cursor, mut records) = (0, Vec::new());
    for limit in cuts.iter().copied().chain(std::iter::repeat(7)) {
        let page = store.export_usage(tenant, cursor, limit).await.unwrap();
        records.extend(page.records);
        cursor = page.next_cursor;
        if !page.has_more {
            break;
        }
    }
    records
}

#[test]
fn an_export_is_the_same_however_it_is_cut_and_repeated() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(filled(40));
    let whole = runtime.block_on(export(&fixture.store, None, &[1000]));
    assert_eq!(whole.len(), 40);
    proptest!(ProptestConfig::with_cases(48), |(cuts in prop::collection::vec(0_u32..12, 0..20), one_tenant: bool)| {
        let acme = tenant("acme");
        let of = one_tenant.then_some(&acme);
        let expected: Vec<_> = whole.iter().filter(|r| of.is_none_or(|t| r.tenant == *t)).cloned().collect();
        prop_assert_eq!(runtime.block_on(export(&fixture.store, of, &cuts)), expected);
    });
}

#[tokio::test]
async fn rows_appended_later_do_not_disturb_an_export_under_way() {
    let fixture = filled(5).await;
    let first = fixture.store.export_usage(None, 0, 3).await.unwrap();
    fixture.admit("acme").await;
    let claimed = fixture.claim().await.unwrap();
    fixture.store.settle(&claimed.lease, failed("internal"), &used(6)).await.unwrap();
    assert_eq!(fixture.store.export_usage(None, 0, 3).await.unwrap(), first);
    let rest = fixture.store.export_usage(None, first.next_cursor, 10).await.unwrap();
    assert_eq!(rest.records.iter().map(|r| r.usage.diffuse_gpu_ms).collect::<Vec<_>>(), [4, 5, 6]);
    let end = fixture.store.export_usage(None, rest.next_cursor, 10).await.unwrap();
    assert!(end.records.is_empty() && end.next_cursor == rest.next_cursor && !end.has_more);
}

#[tokio::test]
async fn reports_sum_by_tenant_day_and_model_and_only_what_was_asked_for() {
    let fixture = filled(4).await;
    fixture.clock.advance_ms(DAY_MS);
    fixture.admit("acme").await;
    let claimed = fixture.claim().await.unwrap();
    let mut segments = used(100);
    segments.extend(used(11));
    segments[1].model = "other-model".into();
    fixture.store.settle(&claimed.lease, failed("internal"), &segments).await.unwrap();

    let sums = async |filter: UsageFilter, group| {
        let report = fixture.store.usage_report(&filter, group).await.unwrap();
        report.into_iter().map(|t| (t.key, t.jobs, t.usage.gpu_ms())).collect::<Vec<_>>()
    };
    let all = UsageFilter::default();
    let key = |k: &str| k.to_owned();
    assert_eq!(sums(all.clone(), UsageGroup::Total).await, [(key("total"), 5, 121)]);
    assert_eq!(sums(all.clone(), UsageGroup::Tenant).await, [(key("acme"), 3, 117), (key("other"), 2, 4)]);
    assert_eq!(sums(all.clone(), UsageGroup::Day).await, [(key("2026-01-01"), 4, 10), (key("2026-01-02"), 1, 111)]);
    assert_eq!(sums(all, UsageGroup::Model).await, [(key("default"), 5, 110), (key("other-model"), 1, 11)]);
    let other = UsageFilter { tenant: Some(tenant("other")), ..Default::default() };
    assert_eq!(sums(other, UsageGroup::Total).await, [(key("total"), 2, 4)]);
    let now_ms = fixture.clock.now_ms();
    let earlier = UsageFilter { tenant: None, from_ms: now_ms - DAY_MS, to_ms: Some(now_ms) };
    assert_eq!(sums(earlier, UsageGroup::Total).await, [(key("total"), 4, 10)]);
    let later = UsageFilter { tenant: None, from_ms: now_ms + 1, to_ms: None };
    assert!(sums(later, UsageGroup::Total).await.is_empty());
}

#[tokio::test]
async fn a_deleted_job_stays_on_the_bill_of_its_tenant_only() {
    let fixture = Fixture::new().await;
    let job = fixture.admit("acme").await;
    let claimed = fixture.claim().await.unwrap();
    fixture.store.settle(&claimed.lease, failed("internal"), &used(42)).await.unwrap();
    fixture.store.delete(&tenant("acme"), &job).await.unwrap();
    let records = fixture.store.usage_of_job(&tenant("acme"), &job).await.unwrap();
    assert_eq!(records.iter().map(|r| (r.attempt, r.usage.diffuse_gpu_ms)).collect::<Vec<_>>(), [(1, 42)]);
    assert!(fixture.store.usage_of_job(&tenant("other"), &job).await.unwrap().is_empty());
}
