//! Exhaustive check of the log protocol over small worlds: the cores of the server, every order of events.
