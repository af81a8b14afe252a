"""Pictures of simulators and policies at work: GIF, MP4 and a page for the browser."""
