//! The page's files, as `web/` built them.

use banyan_gateway::http::File;

/// Path, content type, bytes.
pub(crate) const FILES: &[File] = &[
    ("/", "text/html; charset=utf-8", include_bytes!("../../web/dist/index.html")),
    ("/assets/app.js", "text/javascript; charset=utf-8", include_bytes!("../../web/dist/assets/app.js")),
    ("/assets/app.css", "text/css; charset=utf-8", include_bytes!("../../web/dist/assets/app.css")),
    ("/assets/icon.svg", "image/svg+xml", include_bytes!("../../web/dist/assets/icon.svg")),
];
