//! The worker against models of everybody around it: one behaviour a test, then a simulation of all of them at once.

mod delivery;
mod logins;
mod owners;
mod session;
mod simulation;
mod world;
