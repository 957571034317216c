//! `usage`, `tenants`, `keys`.

use crate::args::{Remote, Usage};
use crate::failure::CommandResult;
use crate::output::{Output, table};
use crate::remote::Client;
use serde_json::{Value, json};

/// Prints what was used.
pub fn usage(args: &Usage, output: Output) -> CommandResult {
    let answer = Client::new(&args.remote)?.get(&format!("/v1/usage?group_by={}", args.by))?;
    let mut rows = vec![[args.by.as_str(), "jobs", "GPU ms", "CPU ms", "stored bytes"].map(str::to_owned).to_vec()];
    for total in answer["data"].as_array().into_iter().flatten() {
        let usage = &total["usage"];
        let sum = |fields: &[&str]| fields.iter().filter_map(|f| usage[*f].as_u64()).sum::<u64>().to_string();
        rows.push(vec![
            total["key"].as_str().unwrap_or("").to_owned(),
            total["jobs"].to_string(),
            sum(&["condition_gpu_ms", "diffuse_gpu_ms", "interpolate_gpu_ms"]),
            sum(&["plan_cpu_ms", "effects_cpu_ms", "encode_cpu_ms"]),
            sum(&["stored_bytes"]),
        ]);
    }
    output.result(&answer, &table(&rows));
    Ok(())
}

/// Lists tenants.
pub fn list_tenants(remote: &Remote, output: Output) -> CommandResult {
    let answer = Client::new(remote)?.get("/v1/tenants")?;
    let ids = answer["data"].as_array().into_iter().flatten().filter_map(|t| t["id"].as_str());
    output.result(&answer, &ids.collect::<Vec<_>>().join("\n"));
    Ok(())
}

/// Makes a tenant.
pub fn create_tenant(id: &str, remote: &Remote, output: Output) -> CommandResult {
    let answer = Client::new(remote)?.post("/v1/tenants", &json!({ "id": id }))?;
    output.result(&answer, &format!("tenant {id} is there; make a key with `zoetrope keys create {id}`"));
    Ok(())
}

/// Makes a key and shows it, this once.
pub fn create_key(tenant: &str, label: &str, remote: &Remote, output: Output) -> CommandResult {
    let answer = Client::new(remote)?.post(&format!("/v1/tenants/{tenant}/keys"), &json!({ "label": label }))?;
    let key = answer.get("key").and_then(Value::as_str).unwrap_or("?").to_owned();
    output.note("Keep this key: only its hash is stored.");
    output.result(&answer, &key);
    Ok(())
}
