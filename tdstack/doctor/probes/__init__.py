"""How each group of facts is come by: from files and libraries, never from a program's words."""
