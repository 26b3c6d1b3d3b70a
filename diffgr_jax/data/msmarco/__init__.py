"""MS MARCO, passages or documents, whole or the 300k subset."""
