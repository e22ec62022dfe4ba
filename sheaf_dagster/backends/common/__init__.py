"""What several backends share: weights' digests, files, pictures, libraries, event loops."""
