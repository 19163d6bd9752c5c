"""The pocket model and its tasks: everything needed to try the workbench without a GPU or a download."""
