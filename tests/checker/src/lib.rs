//! Judges what clients saw against what the store kept and who owned which slot (DESIGN.md, section 10: I1–I16).
