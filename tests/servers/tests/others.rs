//! What the handles promise, on real Redis and Prometheus.
//!
//! Owns: starting, stopping, asking. Does not: test those servers, or what we do with them.

use banyan_test_servers::prometheus::Prometheus;
use banyan_test_servers::redis::Redis;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn redis_comes_back_at_its_address() -> anyhow::Result<()> {
    let mut redis = Redis::start(&["--maxmemory", "8mb"]).await?;
    redis.kill().await?;
    assert!(TcpStream::connect(redis.address()).await.is_err());
    redis.restart().await?;
    assert!(redis.is_running());
    redis.stop().await?;
    assert!(!redis.is_running());
    Ok(())
}

#[tokio::test]
async fn prometheus_scrapes_and_answers() -> anyhow::Result<()> {
    // It scrapes itself, through a file of targets that is read as soon as it is there.
    let configuration = "\
global: { scrape_interval: 100ms }
scrape_configs:
  - job_name: itself
    file_sd_configs: [ { files: [ targets.json ], refresh_interval: 1s } ]
";
    let mut prometheus = Prometheus::start(configuration, &[("targets.json", "[]")]).await?;
    assert!(prometheus.query("up{job=\"itself\"}").await?.contains("\"result\":[]"));
    let targets = format!("[{{\"targets\": [\"{}\"]}}]", prometheus.address());
    std::fs::write(prometheus.directory().join("targets.json"), targets)?;
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = prometheus.query("up{job=\"itself\"} == 1").await?;
        if answer.contains("\"job\":\"itself\"") {
            break;
        }
        anyhow::ensure!(Instant::now() < until, "{answer}\n{}", prometheus.log_tail());
        sleep(Duration::from_millis(50)).await;
    }
    prometheus.restart().await?;
    let error = Prometheus::start("no: such", &[]).await.unwrap_err().to_string();
    assert!(error.contains("ended with"), "{error}");
    Ok(())
}
