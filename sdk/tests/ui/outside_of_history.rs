use onward::prelude::*;
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

mod rand {
    pub fn random() -> u8 {
        4
    }
    pub fn rng() {}
    pub fn thread_rng() {}
}

struct Utc;
struct Local;

impl Utc {
    fn now() {}
}
impl Local {
    fn now() {}
}

#[workflow]
async fn clocks(_: &Ctx) -> onward::Result<()> {
    let started = Instant::now();
    let today = SystemTime::now();
    println!("{:?} {:?} {:?}", started, today, std::time::Instant::now());
    Utc::now();
    Local::now();
    Ok(())
}

#[workflow]
async fn chances(_: &Ctx) -> onward::Result<()> {
    Uuid::new_v4();
    rand::random();
    rand::rng();
    rand::thread_rng();
    Ok(())
}

#[workflow]
async fn tasks(_: &Ctx) -> onward::Result<()> {
    tokio::spawn(async {});
    tokio::time::sleep(Duration::from_secs(1)).await;
    std::thread::sleep(Duration::from_secs(1));
    tokio::select! {
        () = std::future::ready(()) => {}
    }
    Ok(())
}

#[workflow]
async fn outside(_: &Ctx) -> onward::Result<()> {
    std::env::var("HOME").ok();
    std::fs::read("orders.csv").ok();
    tokio::fs::read("orders.csv").await.ok();
    tokio::net::TcpStream::connect("127.0.0.1:80").await.ok();
    std::net::TcpStream::connect("127.0.0.1:80").ok();
    Ok(())
}

fn main() {}
