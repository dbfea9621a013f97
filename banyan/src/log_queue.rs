//! Takes log lines off the threads that say them: a slow reader of the log must not slow a worker.
//!
//! Owns: standard output, while the server runs. Always holds: at most [`LINES_MAX`] lines wait. When it is full the new
//! line is dropped and counted (`banyan_log_dropped_lines_total`); nobody waits for a place.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait: at about 200 B a line less than a megabyte.
const LINES_MAX: usize = 4096;
/// How long the end of the process waits for the last lines to be taken.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Answered once everything before it is written.
    Flush(SyncSender<()>),
}

/// The way in; copies share one queue.
#[derive(Debug, Clone)]
pub(crate) struct LogQueue {
    items: SyncSender<Item>,
}

impl LogQueue {
    /// Starts the thread that writes to `out`.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (items, waiting) = sync_channel(LINES_MAX);
        thread::Builder::new().name("log".to_owned()).spawn(move || write(&waiting, out))?;
        Ok(Self { items })
    }

    /// Waits until what was said so far is written, for a moment at most.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.items.try_send(Item::Flush(done)).is_ok() {
            // Late or gone: the process ends either way.
            written.recv_timeout(FLUSH_DEADLINE).ok();
        }
    }
}

fn write(waiting: &Receiver<Item>, mut out: impl Write) {
    while let Ok(item) = waiting.recv() {
        match item {
            // A reader that went away takes the log with it, not the server.
            Item::Line(line) => out.write_all(&line).and_then(|()| out.flush()).unwrap_or_default(),
            Item::Flush(done) => done.try_send(()).unwrap_or_default(),
        }
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &LogQueue {
    /// Takes one whole line: the formatter writes each event with a single call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.items.try_send(Item::Line(line.to_vec())).is_err() {
            metrics::counter!("banyan_log_dropped_lines_total").increment(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_in_order() {
        let out = Shared::default();
        let queue = LogQueue::start(out.clone()).unwrap();
        for line in ["one\n", "two\n"] {
            (&queue).write_all(line.as_bytes()).unwrap();
        }
        queue.flush();
        assert_eq!(*out.0.lock().unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn a_stuck_reader_stops_nobody() {
        let out = Shared::default();
        let stuck = out.0.lock().unwrap();
        let queue = LogQueue::start(out.clone()).unwrap();
        for _ in 0..LINES_MAX * 3 {
            (&queue).write_all(b"line\n").unwrap();
        }
        drop(stuck);
        // The queue is full, so the flush may find no place; then try again once some lines are out.
        while out.0.lock().unwrap().len() < LINES_MAX * 5 {
            thread::yield_now();
        }
        queue.flush();
        let lines = out.0.lock().unwrap().len() / 5;
        assert!((LINES_MAX..=LINES_MAX + 1).contains(&lines), "{lines} of {} lines were kept", LINES_MAX * 3);
    }
}
