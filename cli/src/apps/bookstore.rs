//! `bookstore`: sells books, and asks the warehouse for more with each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;

use super::counters::Counters;
use super::web::{self, Answer};

struct Store {
    identity: HeaderValue,
    warehouse: String,
    sold: AtomicU64,
    counters: Counters,
}

pub(super) async fn run(identity: &str, warehouse: &str, port: u16) -> anyhow::Result<()> {
    let store = Arc::new(Store {
        identity: HeaderValue::from_str(identity)?,
        warehouse: warehouse.to_owned(),
        sold: AtomicU64::new(0),
        counters: Counters::new("bookstore", warehouse),
    });
    web::serve(port, move |request| {
        let store = Arc::clone(&store);
        async move { store.handle(request).await }
    })
    .await
}

impl Store {
    async fn handle(&self, request: Request<Incoming>) -> Answer {
        self.counters.served();
        let path = request.uri().path();
        let mut answer = match path {
            "/" => return web::show(&self.counters),
            "/liveness" | "/readiness" | "/startup" => return web::answer(StatusCode::OK, "ok"),
            "/books-bought" | "/raw" => web::answer(StatusCode::OK, ""),
            "/buy-a-book/new" => self.sell().await,
            "/reset" => {
                self.sold.store(0, Ordering::Relaxed);
                web::answer(StatusCode::OK, "")
            }
            _ => web::answer(StatusCode::NOT_FOUND, "no such page"),
        };
        let sold = HeaderValue::from(self.sold.load(Ordering::Relaxed));
        println!("{} {path}: {} ({sold:?} sold)", request.method(), answer.status());
        answer.headers_mut().insert("booksbought", sold);
        answer.headers_mut().insert("identity", self.identity.clone());
        answer
    }

    /// A book is sold when the warehouse has sent another one; a failure of its is ours too.
    async fn sell(&self) -> Answer {
        let restocked = match web::call(Method::POST, &self.warehouse, "/restock-books", &[]).await {
            Ok(reply) if reply.status == StatusCode::OK => Ok("bookwarehouse".to_owned()),
            Ok(reply) => Err(reply.status.as_u16().to_string()),
            Err(reason) => Err(reason),
        };
        self.counters.call(&restocked);
        match restocked {
            Ok(_) => {
                self.sold.fetch_add(1, Ordering::Relaxed);
                web::answer(StatusCode::OK, "")
            }
            Err(reason) => web::answer(StatusCode::INTERNAL_SERVER_ERROR, format!("restocking: {reason}")),
        }
    }
}
