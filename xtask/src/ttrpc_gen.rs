//! Clients and servers of ttrpc services, as text.
//!
//! For a service `Task` this writes a module `task_ttrpc` with the service's name (`SERVICE`), a
//! `TaskClient` over `gantry_ttrpc::Client`, a trait `Task` whose methods answer Unimplemented
//! until they are written, and `TaskServer`, which makes a `gantry_ttrpc::Service` of it.

use std::fmt::Write as _;

use prost_build::{Method, Service};

/// Appends the module of `service`.
pub(crate) fn generate(service: &Service, buf: &mut String) {
    let methods: Vec<&Method> =
        service.methods.iter().filter(|m| !m.client_streaming && !m.server_streaming).collect();
    assert_eq!(methods.len(), service.methods.len(), "no ttrpc service of ours has streams");
    let full = format!("{}.{}", service.package, service.proto_name);
    let module = module_name(&service.name);
    let name = &service.name;
    let mut out = format!(
        "/// Client and server of `{full}` over ttrpc.\n\
         pub mod {module} {{\n\
         /// The name of the service on the wire.\n\
         pub const SERVICE: &str = \"{full}\";\n"
    );
    client(name, &methods, &mut out);
    server(name, &methods, &mut out);
    out.push_str("}\n");
    buf.push_str(&out);
}

fn client(name: &str, methods: &[&Method], out: &mut String) {
    put(
        out,
        &format!(
            "/// Calls the service on the far end of a connection.\n\
             #[derive(Clone, Debug)]\n\
             pub struct {name}Client {{\n\
             client: ::gantry_ttrpc::Client,\n\
             service: &'static str,\n\
             }}\n\
             impl {name}Client {{\n\
             /// Calls over `client`, which other services may share.\n\
             pub fn new(client: ::gantry_ttrpc::Client) -> Self {{ Self::named(client, SERVICE) }}\n\
             /// Calls a service that differs from this one by its name only.\n\
             pub fn named(client: ::gantry_ttrpc::Client, service: &'static str) -> Self {{\n\
             Self {{ client, service }}\n\
             }}\n\
             /// The name under which calls are sent.\n\
             pub fn service(&self) -> &'static str {{ self.service }}\n\
             /// The connection below.\n\
             pub fn connection(&self) -> &::gantry_ttrpc::Client {{ &self.client }}\n"
        ),
    );
    for m in methods {
        put(
            out,
            &format!(
                "/// Calls `{proto}`.\n\
                 pub async fn {rust}(&self, ctx: &::gantry_ttrpc::Context, request: &{input}) \
                 -> ::gantry_ttrpc::Result<{output}> {{\n\
                 self.client.call(self.service, \"{proto}\", request, ctx).await\n}}\n",
                proto = m.proto_name,
                rust = m.name,
                input = path(&m.input_type),
                output = path(&m.output_type),
            ),
        );
    }
    out.push_str("}\n");
}

fn server(name: &str, methods: &[&Method], out: &mut String) {
    put(
        out,
        &format!(
            "/// The methods of the service; each answers Unimplemented until it is written.\n\
             pub trait {name}: Send + Sync + 'static {{\n"
        ),
    );
    for m in methods {
        put(
            out,
            &format!(
                "/// Serves `{proto}`.\n\
                 fn {rust}(&self, ctx: ::gantry_ttrpc::Context, request: {input}) \
                 -> impl ::std::future::Future<Output = ::gantry_ttrpc::Result<{output}>> \
                 + Send {{\n\
                 let _ = (ctx, request);\n\
                 async {{ Err(::gantry_ttrpc::unimplemented(SERVICE, \"{proto}\")) }}\n}}\n",
                proto = m.proto_name,
                rust = m.name,
                input = path(&m.input_type),
                output = path(&m.output_type),
            ),
        );
    }
    put(
        out,
        &format!(
            "}}\n\
             /// Serves an implementation of [`{name}`].\n\
             #[derive(Debug)]\n\
             pub struct {name}Server<T> {{\n\
             inner: ::std::sync::Arc<T>,\n\
             service: &'static str,\n\
             }}\n\
             impl<T: {name}> {name}Server<T> {{\n\
             /// Serves `inner`.\n\
             pub fn new(inner: ::std::sync::Arc<T>) -> Self {{ Self::named(inner, SERVICE) }}\n\
             /// Serves `inner` as a service that differs from this one by its name only.\n\
             pub fn named(inner: ::std::sync::Arc<T>, service: &'static str) -> Self {{\n\
             Self {{ inner, service }}\n\
             }}\n\
             }}\n\
             impl<T: {name}> ::gantry_ttrpc::Service for {name}Server<T> {{\n\
             fn name(&self) -> &'static str {{ self.service }}\n\
             fn call(&self, method: &str, ctx: ::gantry_ttrpc::Context, payload: ::bytes::Bytes) \
             -> ::gantry_ttrpc::Reply {{\n\
             let inner = ::std::sync::Arc::clone(&self.inner);\n\
             match method {{\n"
        ),
    );
    for m in methods {
        put(
            out,
            &format!(
                "\"{proto}\" => ::gantry_ttrpc::reply(payload, |request| async move {{ \
                 inner.{rust}(ctx, request).await }}),\n",
                proto = m.proto_name,
                rust = m.name,
            ),
        );
    }
    out.push_str("_ => ::gantry_ttrpc::unknown_method(self.service, method),\n}\n}\n}\n");
}

/// A type as seen from inside the module, which is one level below the messages.
fn path(rust_type: &str) -> String {
    if rust_type == "()" || rust_type.starts_with("::") || rust_type.starts_with("crate::") {
        rust_type.to_owned()
    } else {
        format!("super::{rust_type}")
    }
}

/// `HostFunctions` => `host_functions_ttrpc`.
fn module_name(service: &str) -> String {
    let mut name = String::new();
    for c in service.chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(c.to_lowercase());
    }
    name + "_ttrpc"
}

fn put(out: &mut String, text: &str) {
    out.write_str(text).expect("a String takes any text");
}
