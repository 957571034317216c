-- Who, which function, which job, what it cost. Times are milliseconds since the Unix epoch, amounts are integers.

CREATE TABLE tenants (
    -- The device queue knows a tenant only by this number.
    lane             INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT    NOT NULL UNIQUE,
    created_ms       INTEGER NOT NULL,
    gpu_ms_per_day   INTEGER NOT NULL CHECK (gpu_ms_per_day >= 0),
    jobs_running_max INTEGER NOT NULL CHECK (jobs_running_max >= 0),
    jobs_queued_max  INTEGER NOT NULL CHECK (jobs_queued_max >= 0),
    stored_bytes_max INTEGER NOT NULL CHECK (stored_bytes_max >= 0),
    -- When this tenant was last served, as a running number: the next turn goes to the lowest.
    last_claim_seq   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE api_keys (
    id           TEXT    PRIMARY KEY,
    tenant       TEXT    NOT NULL REFERENCES tenants (id),
    role         TEXT    NOT NULL CHECK (role IN ('operator', 'tenant')),
    label        TEXT    NOT NULL,
    -- The first characters, shown to tell keys apart. The key itself is nowhere.
    prefix       TEXT    NOT NULL,
    sha256       BLOB    NOT NULL UNIQUE CHECK (length(sha256) = 32),
    created_ms   INTEGER NOT NULL,
    last_used_ms INTEGER,
    revoked_ms   INTEGER
) STRICT;
CREATE INDEX api_keys_by_prefix ON api_keys (prefix);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant);

CREATE TABLE function_versions (
    tenant     TEXT    NOT NULL REFERENCES tenants (id),
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL CHECK (version >= 1),
    kind       TEXT    NOT NULL CHECK (kind IN ('prompt_hook', 'simple_effect', 'frame_effect', 'director')),
    digest     TEXT    NOT NULL CHECK (length(digest) = 64),
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX function_versions_by_digest ON function_versions (digest);
CREATE TRIGGER function_versions_are_immutable BEFORE UPDATE ON function_versions
BEGIN SELECT RAISE(ABORT, 'a function version never changes: publish a new one'); END;

CREATE TABLE jobs (
    seq               INTEGER PRIMARY KEY AUTOINCREMENT,
    id                TEXT    NOT NULL UNIQUE,
    tenant            TEXT    NOT NULL REFERENCES tenants (id),
    state             TEXT    NOT NULL CHECK (state IN ('queued', 'running', 'completed', 'failed')),
    spec              TEXT    NOT NULL,
    remixed_from      TEXT,
    stage             TEXT    NOT NULL,
    progress_permille INTEGER NOT NULL DEFAULT 0 CHECK (progress_permille BETWEEN 0 AND 1000),
    -- Runs started so far; counted before each run, so that a job that ends its worker is counted too.
    attempt           INTEGER NOT NULL DEFAULT 0,
    -- A quota reservation is nothing but this column of an unfinished job: it cannot outlive the job.
    reserved_gpu_ms   INTEGER NOT NULL CHECK (reserved_gpu_ms >= 0),
    -- Given pictures, and the results once there are some.
    stored_bytes      INTEGER NOT NULL DEFAULT 0,
    cancel_requested  INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    worker            TEXT,
    -- The fencing token: grows with every claim.
    lease_epoch       INTEGER NOT NULL DEFAULT 0,
    lease_expires_ms  INTEGER,
    created_ms        INTEGER NOT NULL,
    started_ms        INTEGER,
    completed_ms      INTEGER,
    expires_ms        INTEGER,
    result            TEXT,
    error_code        TEXT,
    error_message     TEXT,
    CHECK ((state = 'running') = (worker IS NOT NULL AND lease_expires_ms IS NOT NULL)),
    CHECK ((state = 'completed') = (result IS NOT NULL)),
    CHECK ((state = 'failed') = (error_code IS NOT NULL AND error_message IS NOT NULL)),
    CHECK ((state IN ('completed', 'failed')) = (completed_ms IS NOT NULL))
) STRICT;
-- Covers the queue's questions and the quota sums.
CREATE INDEX jobs_by_tenant ON jobs (tenant, state, seq, reserved_gpu_ms, stored_bytes);
CREATE INDEX jobs_by_age ON jobs (tenant, seq);
CREATE INDEX jobs_by_lease ON jobs (lease_expires_ms) WHERE state = 'running';
CREATE INDEX jobs_by_expiry ON jobs (expires_ms) WHERE expires_ms IS NOT NULL;

-- Which objects a job keeps alive: the same bytes may belong to several jobs.
CREATE TABLE job_objects (
    job_seq INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
    object  TEXT    NOT NULL,
    PRIMARY KEY (job_seq, object)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_objects_by_object ON job_objects (object);

CREATE TABLE idempotency_keys (
    tenant      TEXT    NOT NULL REFERENCES tenants (id),
    key         TEXT    NOT NULL,
    body_sha256 TEXT    NOT NULL,
    job_seq     INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
    created_ms  INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job_seq);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_ms);

-- The ledger. No foreign key to jobs: a deleted job stays on the bill.
CREATE TABLE usage (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant             TEXT    NOT NULL,
    job                TEXT    NOT NULL,
    attempt            INTEGER NOT NULL,
    segment            INTEGER NOT NULL,
    at_ms              INTEGER NOT NULL,
    model              TEXT    NOT NULL,
    device             TEXT    NOT NULL,
    plan_cpu_ms        INTEGER NOT NULL CHECK (plan_cpu_ms >= 0),
    condition_gpu_ms   INTEGER NOT NULL CHECK (condition_gpu_ms >= 0),
    diffuse_gpu_ms     INTEGER NOT NULL CHECK (diffuse_gpu_ms >= 0),
    interpolate_gpu_ms INTEGER NOT NULL CHECK (interpolate_gpu_ms >= 0),
    effects_cpu_ms     INTEGER NOT NULL CHECK (effects_cpu_ms >= 0),
    encode_cpu_ms      INTEGER NOT NULL CHECK (encode_cpu_ms >= 0),
    stored_bytes       INTEGER NOT NULL CHECK (stored_bytes >= 0),
    UNIQUE (job, attempt, segment)
) STRICT;
CREATE INDEX usage_by_tenant ON usage (tenant, at_ms, condition_gpu_ms, diffuse_gpu_ms, interpolate_gpu_ms);
CREATE TRIGGER usage_is_never_updated BEFORE UPDATE ON usage
BEGIN SELECT RAISE(ABORT, 'the usage ledger is append-only'); END;
CREATE TRIGGER usage_is_never_deleted BEFORE DELETE ON usage
BEGIN SELECT RAISE(ABORT, 'the usage ledger is append-only'); END;
