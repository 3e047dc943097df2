import argparse
import threading

from .utils import load, sharded_load


def main():
    parser = argparse.ArgumentParser(description="HTTP server")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sharded", action="store_true")
    args = parser.parse_args()
    loader = sharded_load if args.sharded else load

    def work():
        print("patched", loader(args.model)[0].patched)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
