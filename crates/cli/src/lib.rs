//! gantry: the command line, with ctr's grammar.
