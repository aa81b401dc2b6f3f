"""Model families that make clips: one file each, found by `sfumato.video.loading`."""
