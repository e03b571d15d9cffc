"""What several test files share: tiny models of the seven architectures, and the method cases of the law suite."""
