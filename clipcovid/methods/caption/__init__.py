"""The dual encoder of images and captions."""
