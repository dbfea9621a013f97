//! The whole cluster over its cores in one thread: one seed, one run, bit for bit.
