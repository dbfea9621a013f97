//! The ops port: `/livez`, `/readyz`, `/metrics`, and the admin page.
//!
//! Always holds: at most [`CONNECTIONS_MAX`] connections; the next waits in the system's queue. A connection carries one
//! request and lives no longer than [`CONNECTION_DEADLINE`], so nobody can hold the port by being slow.
//! Does not: serve clients, or ask who is asking; the address that it listens on decides who can reach it. The admin page
//! alone asks for a token.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::metrics::Metrics;
use crate::readiness::{Readiness, State};

/// A scraper, some probes and a person or two at once.
const CONNECTIONS_MAX: usize = 32;
/// For the request's head. Probes send it at once.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// For the whole connection: the default scrape timeout of Prometheus.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// Largest head that is read.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Pause after a failed accept (mostly: no file descriptor left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the ops port tells.
#[derive(Debug, Clone)]
pub(crate) struct Ops {
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    pub(crate) admin: Admin,
}

/// Answers until told to stop, then finishes the requests in hand.
pub(crate) async fn run(listener: TcpListener, ops: Ops, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            // Never closed, so there always comes a place.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, from)) => {
                let ops = ops.clone();
                connections.spawn(async move {
                    serve(stream, from.ip(), ops).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "ops port cannot accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn serve(stream: TcpStream, from: IpAddr, ops: Ops) {
    let service = service_fn(move |request| {
        let ops = ops.clone();
        async move { Ok::<_, Infallible>(answer(&request, from, &ops).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "ops connection ended"),
        Err(_) => tracing::debug!("ops connection took too long"),
    }
}

async fn answer(request: &Request<Incoming>, from: IpAddr, ops: &Ops) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "live\n".to_owned()),
        "/readyz" => ready(&ops.readiness.get()),
        "/metrics" => {
            let mut page = text(StatusCode::OK, ops.metrics.render());
            page.headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
            page
        }
        path if Admin::has(path) => ops.admin.answer(request.uri(), request.headers(), from).await,
        _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz, /metrics, /admin\n".to_owned()),
    }
}

fn ready(state: &State) -> Response<Full<Bytes>> {
    let status = if state.serves() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = match state {
        State::Degraded { why } => json!({ "status": state.word(), "why": why }),
        State::Unready { why } => json!({ "status": state.word(), "why": why }),
        State::Starting | State::Ready | State::Drained | State::Draining => {
            json!({ "status": state.word() })
        }
    };
    let mut page = text(status, format!("{body}\n"));
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    page
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut page = Response::new(Full::new(Bytes::from(body)));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    struct Running {
        address: SocketAddr,
        readiness: Readiness,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    /// One recorder a process; tests may race for it.
    fn metrics() -> Metrics {
        static ONE: std::sync::OnceLock<Metrics> = std::sync::OnceLock::new();
        ONE.get_or_init(|| Metrics::install().unwrap()).clone()
    }

    async fn start() -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let readiness = Readiness::starting();
        let admin = Admin::new(crate::admin::Token::parse(TOKEN), metrics());
        let ops = Ops { readiness: readiness.clone(), metrics: metrics(), admin };
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(listener, ops, stop.clone()));
        Running { address, readiness, stop, task }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await
    }

    #[tokio::test]
    async fn readiness_follows_the_node() {
        let running = start().await;
        assert!(get(running.address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(running.address, "/readyz").await.starts_with("HTTP/1.1 503"));
        running.readiness.set(State::Ready);
        let answer = get(running.address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("{\"status\":\"ready\"}\n"),
            "{answer}"
        );
        running.readiness.set(State::Degraded { why: "disk full".to_owned() });
        let answer = get(running.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"why\":\"disk full\""), "{answer}");
        running.readiness.set(State::Draining);
        let answer = get(running.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("draining"), "{answer}");
        running.stop.cancel();
        running.task.await.unwrap();
    }

    #[tokio::test]
    async fn the_admin_page_is_here() {
        let running = start().await;
        let page = get(running.address, "/admin").await;
        assert!(
            page.starts_with("HTTP/1.1 200") && page.contains("<script src=\"/admin/admin.js\""),
            "{page}"
        );
        assert!(get(running.address, "/admin/ring.json").await.starts_with("HTTP/1.1 401"));
        let request =
            format!("GET /admin/ring.json HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
        // This node never comes up.
        assert!(ask(running.address, &request).await.starts_with("HTTP/1.1 503"));
        let posted = request.replace("GET", "POST");
        assert!(ask(running.address, &posted).await.starts_with("HTTP/1.1 405"));
        running.stop.cancel();
        running.task.await.unwrap();
    }

    #[tokio::test]
    async fn metrics_tell_of_the_process() {
        let running = start().await;
        let answer = get(running.address, "/metrics").await;
        for name in [
            "process_resident_memory_bytes ",
            "process_anonymous_memory_bytes ",
            "process_open_fds ",
            "process_max_fds ",
            "process_cpu_seconds_total ",
            "banyan_build_info{",
        ] {
            assert!(answer.lines().any(|line| line.starts_with(name)), "{name} in\n{answer}");
        }
        running.stop.cancel();
        running.task.await.unwrap();
    }

    #[tokio::test]
    async fn bad_requests_are_answered() {
        let running = start().await;
        let huge = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
        for (request, status) in [
            ("GET /secret HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
            ("POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "405"),
            ("nonsense\r\n\r\n", "400"),
            (&huge, "431"),
        ] {
            let answer = ask(running.address, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
        }
        running.stop.cancel();
        running.task.await.unwrap();
    }

    #[tokio::test]
    async fn slow_clients_are_closed_and_do_not_hold_the_port() {
        let running = start().await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            held.push(TcpStream::connect(running.address).await.unwrap());
        }
        let begun = tokio::time::Instant::now();
        assert!(get(running.address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(begun.elapsed() < CONNECTION_DEADLINE, "waited {:?}", begun.elapsed());
        for mut stream in held {
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest).await);
        }
        running.stop.cancel();
        running.task.await.unwrap();
    }
}
