//! The server's life: listen, run jobs, and on SIGINT or SIGTERM finish what is on the wire and stop.

use crate::http;
use crate::platform::Platform;
use crate::worker::Worker;
use anyhow::Context;
use pipeline::Progress;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

/// Runs the roles of this process until it is asked to stop. `on_listening` hears the address, once HTTP answers.
pub async fn run(
    platform: Arc<Platform>,
    observer: Arc<dyn Progress>,
    on_listening: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let (stop, stopped) = watch::channel(false);
    let worker =
        platform.config.runs_jobs().then(|| tokio::spawn(Worker::new(platform.clone(), observer).run(stopped.clone())));
    let gateway = if platform.config.is_gateway() {
        let listen = platform.config.listen;
        let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        on_listening(listener.local_addr()?);
        let mut stopped = stopped.clone();
        let until_stopped = async move {
            // An error means that the sender is gone, which is a stop too.
            drop(stopped.wait_for(|stop| *stop).await);
        };
        let app = http::router(platform.clone());
        Some(tokio::spawn(axum::serve(listener, app).with_graceful_shutdown(until_stopped).into_future()))
    } else {
        None
    };
    wait_for_signal().await?;
    info!("stopping; unfinished jobs run again at the next start");
    stop.send_replace(true);
    if let Some(gateway) = gateway {
        gateway.await??;
    }
    if let Some(worker) = worker {
        worker.await??;
    }
    platform.jobs.close().await;
    Ok(())
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for SIGINT")?,
        _ = terminate.recv() => {}
    }
    Ok(())
}
