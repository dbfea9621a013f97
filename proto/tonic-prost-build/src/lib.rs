//! The entry points of `tonic-prost-build` that our dependencies call, with protox in the place of `protoc`.
//!
//! Owns: turning `.proto` files into prost messages and tonic clients and servers inside a build script.
//! Always holds: no program is run; a machine with Rust and a C compiler is enough (docs/decisions/0002-protoc.md).
//! Does not: offer upstream's other options. A build script that wants one of them fails to compile and names it.

use proc_macro2::TokenStream;
use std::io;
use std::path::Path;

/// What the gRPC code calls to encode messages; upstream's default.
const CODEC: &str = "tonic_prost::ProstCodec";

/// Starts a build with upstream's defaults: client and server code.
pub fn configure() -> Builder {
    Builder { client: true, server: true }
}

/// What is generated.
#[derive(Debug, Clone)]
pub struct Builder {
    client: bool,
    server: bool,
}

impl Builder {
    /// Whether client code is generated.
    pub fn build_client(mut self, enable: bool) -> Self {
        self.client = enable;
        self
    }

    /// Whether server traits and code are generated.
    pub fn build_server(mut self, enable: bool) -> Self {
        self.server = enable;
        self
    }

    /// Compiles `.proto` files, found under `includes`, into `OUT_DIR`.
    pub fn compile_protos<P: AsRef<Path>>(self, protos: &[P], includes: &[P]) -> io::Result<()> {
        for path in protos {
            println!("cargo:rerun-if-changed={}", path.as_ref().display());
        }
        let files = protox::compile(protos, includes).map_err(io::Error::other)?;
        let mut config = prost_build::Config::new();
        config.service_generator(Box::new(self));
        config.compile_fds(files)
    }
}

impl prost_build::ServiceGenerator for Builder {
    fn generate(&mut self, service: prost_build::Service, out: &mut String) {
        let service =
            Service { methods: service.methods.iter().cloned().map(Method).collect(), inner: service };
        let mut code = tonic_build::CodeGenBuilder::new();
        code.emit_package(true).build_transport(true);
        if self.client {
            out.push_str(&code.generate_client(&service, "super").to_string());
        }
        if self.server {
            out.push_str(&code.generate_server(&service, "super").to_string());
        }
    }
}

/// A prost service as tonic wants to see it; tonic borrows the methods, so they are wrapped up front.
struct Service {
    inner: prost_build::Service,
    methods: Vec<Method>,
}

struct Method(prost_build::Method);

impl tonic_build::Service for Service {
    type Comment = String;
    type Method = Method;

    fn name(&self) -> &str {
        &self.inner.name
    }

    fn package(&self) -> &str {
        &self.inner.package
    }

    fn identifier(&self) -> &str {
        &self.inner.proto_name
    }

    fn methods(&self) -> &[Method] {
        &self.methods
    }

    fn comment(&self) -> &[String] {
        &self.inner.comments.leading
    }
}

impl tonic_build::Method for Method {
    type Comment = String;

    fn name(&self) -> &str {
        &self.0.name
    }

    fn identifier(&self) -> &str {
        &self.0.proto_name
    }

    fn codec_path(&self) -> &str {
        CODEC
    }

    fn client_streaming(&self) -> bool {
        self.0.client_streaming
    }

    fn server_streaming(&self) -> bool {
        self.0.server_streaming
    }

    fn comment(&self) -> &[String] {
        &self.0.comments.leading
    }

    fn deprecated(&self) -> bool {
        self.0.options.deprecated()
    }

    fn request_response_name(&self, proto_path: &str, _well_known: bool) -> (TokenStream, TokenStream) {
        (rust_path(proto_path, &self.0.input_type), rust_path(proto_path, &self.0.output_type))
    }
}

/// The type as named from inside the generated module, whose parent is `proto_path`.
fn rust_path(proto_path: &str, name: &str) -> TokenStream {
    // prost has resolved the well-known types and extern paths already; only relative names need the parent.
    let absolute = name.starts_with("::") || name.starts_with("crate::") || name == "()";
    let path = if absolute { name.to_owned() } else { format!("{proto_path}::{name}") };
    path.parse().unwrap_or_else(|e| panic!("prost gave the type name {path:?}, which is not Rust: {e}"))
}
