//! Every unsafe system call of the project, behind safe functions.
