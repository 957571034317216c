//! The wasmtime engine: Cranelift, pooled instances, and the thread that drives the epoch.

use crate::error::RuntimeError;
use crate::limits::{EPOCH_MS, Limits};
use std::time::Duration;
use wasmtime::{Config, Engine, PoolingAllocationConfig};

/// Memories of one component. A Rust component has one, those of other languages at most one more.
const MEMORIES_PER_CALL: u32 = 2;
/// Core instances and tables of one component: interpreters that link their libraries as modules need the most.
const INSTANCES_PER_CALL: u32 = 32;
/// Tables of one module: compilers make one, linkers of several languages a few.
const TABLES_PER_MODULE: u32 = 4;
/// What stays committed of a returned memory, zeroed by hand: cheaper than new pages for a small component.
const KEEP_RESIDENT_BYTES: usize = 1 << 20;

/// An engine with its ticker running. The ticker ends when the last clone of the engine is gone.
pub(crate) fn start(limits: &Limits) -> Result<Engine, RuntimeError> {
    let engine = Engine::new(&config(limits)).map_err(|e| RuntimeError::Engine(format!("{e:#}")))?;
    let weak = engine.weak();
    std::thread::Builder::new()
        .name("wasm-epoch".to_owned())
        .spawn(move || {
            // Its own OS thread: no load on the async runtime can hold it up.
            while let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(Duration::from_millis(EPOCH_MS));
            }
        })
        .map_err(|e| RuntimeError::Engine(format!("no thread for the epoch: {e}")))?;
    Ok(engine)
}

fn config(limits: &Limits) -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    config.max_wasm_stack(limits.stack_bytes_max);
    config.async_stack_size(limits.stack_bytes_max + (1 << 20));
    // Host functions run on these stacks too: nothing of one call may be seen by the next.
    config.async_stack_zeroing(true);
    config.wasm_memory64(false);
    config.concurrency_support(false);
    config.allocation_strategy(pool(limits));
    config
}

fn pool(limits: &Limits) -> PoolingAllocationConfig {
    let calls = limits.calls_max;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(calls)
        .total_stacks(calls)
        .max_memories_per_component(MEMORIES_PER_CALL)
        .max_memories_per_module(MEMORIES_PER_CALL)
        .total_memories(calls * MEMORIES_PER_CALL)
        .max_memory_size(limits.memory_bytes_max)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .max_core_instances_per_component(INSTANCES_PER_CALL)
        .total_core_instances(calls * INSTANCES_PER_CALL)
        .max_tables_per_component(INSTANCES_PER_CALL)
        .max_tables_per_module(TABLES_PER_MODULE)
        .total_tables(calls * INSTANCES_PER_CALL)
        .table_elements(limits.table_elements_max)
        .max_unused_warm_slots(calls);
    pool
}
