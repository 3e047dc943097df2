import argparse

import a_package_that_is_not_installed


def main():
    argparse.ArgumentParser().parse_args()
    return a_package_that_is_not_installed
