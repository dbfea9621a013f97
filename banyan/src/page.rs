//! The pages' files, as `web/` built them.

use banyan_gateway::http::File;

/// Of the chat: path, content type, bytes.
pub(crate) const FILES: &[File] = &[
    ("/", "text/html; charset=utf-8", include_bytes!("../../web/dist/index.html")),
    ("/assets/app.js", "text/javascript; charset=utf-8", include_bytes!("../../web/dist/assets/app.js")),
    ("/assets/app.css", "text/css; charset=utf-8", include_bytes!("../../web/dist/assets/app.css")),
    ("/assets/icon.svg", "image/svg+xml", include_bytes!("../../web/dist/assets/icon.svg")),
];

/// Of the admin page on the ops port.
pub(crate) const ADMIN_FILES: &[File] = &[
    ("/admin", "text/html; charset=utf-8", include_bytes!("../../web/dist/admin/index.html")),
    ("/admin/", "text/html; charset=utf-8", include_bytes!("../../web/dist/admin/index.html")),
    ("/admin/admin.js", "text/javascript; charset=utf-8", include_bytes!("../../web/dist/admin/admin.js")),
    ("/admin/admin.css", "text/css; charset=utf-8", include_bytes!("../../web/dist/admin/admin.css")),
    ("/admin/icon.svg", "image/svg+xml", include_bytes!("../../web/dist/assets/icon.svg")),
];
