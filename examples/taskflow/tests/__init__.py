"""The tests of the task tracker."""
