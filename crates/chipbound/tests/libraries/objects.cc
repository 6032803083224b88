// A C++ library: objects with constructors of their own, exceptions that leave it, virtual calls, objects of threads.
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Noisy {
    std::string name;
    explicit Noisy(const char *name) : name(name) { std::cout << "made " << name << std::endl; }
    ~Noisy() { std::cout << "ended " << name << std::endl; }
};

static Noisy one("one"), two("two");
static std::vector<std::string> words{"a", "few", "words"};
static thread_local Noisy of_thread("of a thread");

struct Shape {
    virtual ~Shape() = default;
    virtual int area() const { throw std::logic_error("no area"); }
};
struct Square : Shape {
    int side;
    explicit Square(int side) : side(side) {}
    int area() const override { return side * side; }
};

extern "C" int greet(int number)
{
    std::cout << of_thread.name << " " << words.at(2) << std::endl;
    std::unique_ptr<Shape> shape(number < 3 ? new Square(number) : new Shape);
    try {
        words.at(number + 10);
    } catch (const std::out_of_range &) {
        std::cout << "caught inside" << std::endl;
    }
    return shape->area();
}
