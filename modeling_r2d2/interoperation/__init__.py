"""Where saved folders look for what is now `modeling_r2d2.integrations`."""
